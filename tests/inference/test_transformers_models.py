"""The commands with CTC models of Transformers in the place of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from lact_asr.checkpoint import load_checkpoint
from lact_asr.inference.align import main as align
from lact_asr.inference.companions import checkpoint_folder, tuned_weights
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.evaluate_robustness import main as evaluate_robustness
from lact_asr.inference.feature_statistics import main as collect_statistics
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt_procedure import TestTimeTrainer
from lact_asr.text import build_vocabulary

RECIPES = Path(__file__).resolve().parents[2] / "inference" / "recipes"
ENTROPY = TTTSettings("entropy", learning_rate=1e-2, steps=2, max_entropy=1)


@pytest.fixture(scope="module")
def saved(transformers_model, tmp_path_factory) -> Callable[..., Path]:
    """``saved(family, lower_case)`` is the folder of a random model, whose vocabulary may be in lower case; not to be changed."""

    def save(family: str = "wav2vec2", lower_case: bool = False) -> Path:
        folder = tmp_path_factory.mktemp(family)
        vocabulary = build_vocabulary()
        if lower_case:
            vocabulary = {token if len(token) > 1 else token.lower(): index for token, index in vocabulary.items()}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=False)
        Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
        transformers_model(family, vocab_size=32, pad_token_id=0).save_pretrained(folder)
        return folder

    return save


def recogniser(folder: Path, settings: TTTSettings | None = None) -> Recogniser:
    checkpoint = load_checkpoint(folder)
    return Recogniser(checkpoint, make_decoder(checkpoint.processor.vocabulary, 0), settings)


@torch.no_grad()
def test_text_and_times_are_those_of_transformers(saved, audio):
    """Greedy text as Transformers' own tokenizer decodes it; its word offsets are frames, of which ours stand in the middle."""
    folder, samples = saved(), audio.make(1.0)
    processor, ours = Wav2Vec2Processor.from_pretrained(folder), recogniser(folder)
    inputs = processor(samples, sampling_rate=16_000, return_tensors="pt")
    logits = ours.model(inputs.input_values).logits
    logits[..., 1:4] = -torch.inf  # special tokens, which Transformers would write out
    decoded = processor.batch_decode(logits.argmax(-1), output_word_offsets=True)
    (answer,) = ours([samples])
    assert answer.text.split() == decoded.text[0].split()
    assert [word.text for word in answer.words] == [word["word"] for word in decoded.word_offsets[0]]
    starts = [word["start_offset"] * 320 / 16_000 + 40 / 16_000 for word in decoded.word_offsets[0]]
    assert [word.start_seconds for word in answer.words] == pytest.approx(starts)


@pytest.mark.parametrize("durations", [(0.7, 1.0, 0.7), (0.7, 0.7, 0.7)], ids=["ragged", "equal"])
@pytest.mark.parametrize("settings", [None, ENTROPY], ids=["plain", "ttt"])
def test_batches_change_nothing(family, saved, audio, settings, durations):
    recognise = recogniser(saved(family), settings)
    recordings = [audio.make(seconds, number) for number, seconds in enumerate(durations)]
    together = recognise(recordings)
    assert together == [recognise([samples])[0] for samples in recordings]
    assert len({answer.text for answer in together}) == 3


def test_ttt_is_that_of_the_trainer(saved, audio):
    folder, samples = saved("hubert"), audio.make(1.0)
    adapting, plain = recogniser(folder, ENTROPY), recogniser(folder)
    before = {name: value.clone() for name, value in adapting.model.state_dict().items()}
    (answer,) = adapting([samples])
    outcome = TestTimeTrainer(plain.model, ENTROPY).adapt(plain._input_values(samples)[0])
    assert outcome.adapted
    assert answer.text == plain.decoder.decode(outcome.logits.log_softmax(-1)).text != answer.text_without_ttt
    assert answer.text_without_ttt == plain([samples])[0].text
    assert all(torch.equal(value, before[name]) for name, value in adapting.model.state_dict().items())


def test_a_corpus_is_scored_in_either_case(saved, librispeech, transcribe, tmp_path):
    rates = []
    for lower_case in (False, True):
        results = tmp_path / f"{lower_case}.jsonl"
        done = transcribe("--checkpoint", saved(lower_case=lower_case), "--data_dir", librispeech, "--subset", "test-tiny",
                          "--beam_size", 5, "--use_ttt", "--ttt_max_entropy", 1, "--output", results)  # fmt: skip
        assert done.code == 0
        assert "TTT: entropy, 10 steps of adamw at 2e-05 on norms,front_end." in done.err
        assert "models of Transformers take SUTA's TTT loss, entropy" in done.err
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        texts = "".join(line["hypothesis"] for line in lines if "hypothesis" in line)
        assert texts.isupper() is not lower_case
        rates.append([line["character_errors"] for line in lines if "hypothesis" in line])
    assert rates[0] == rates[1]


def test_a_language_model_in_the_other_case(saved, language_model, audio, transcribe, tmp_path):
    path = audio.write(tmp_path / "a.wav", 1.0)
    flags = (
        "--audio_file",
        path,
        "--lm_path",
        language_model,
        "--use_ttt",
        "--ttt_max_entropy",
        1,
        "--ttt_keep",
        "likelier",
    )
    upper, lower = (transcribe("--checkpoint", saved(lower_case=case), *flags).out for case in (False, True))
    assert upper.splitlines()[0].split("\t")[1].strip()
    assert [line.split("\t")[1].lower() for line in upper.splitlines()] == [
        line.split("\t")[1] for line in lower.splitlines()
    ]


def test_alignment_in_the_models_case(saved, audio, tmp_path, capsys):
    path = audio.write(tmp_path / "a.wav", 1.0)
    assert align(["--checkpoint", str(saved(lower_case=True)), "--audio_file", str(path), "--text", "The Cat"]) == 0
    assert [line.split()[4] for line in capsys.readouterr().out.splitlines()] == ["the", "cat"]


@pytest.mark.parametrize("recipe", ["tent", "suta", "cea", "sgem", "sar", "dsuta", "awmc", "e_bats"])
def test_published_methods(family, saved, recipe, librispeech, transcribe, tmp_path):
    """At rates that a model of these sizes feels: utterances change, and for dsuta the slow step comes after two of them."""
    folder, results = saved(family), tmp_path / "r.jsonl"
    if recipe == "e_bats":
        assert collect_statistics([f"--checkpoint={folder}", f"--data_dir={librispeech}", "--subset=test-tiny"]) == 0
    content = json.loads((RECIPES / f"{recipe}.json").read_text())
    stages = [
        {**stage, "learning_rate": 0.02, "entropy_margin": None, "final_learning_rate": None}
        for stage in content["stages"]
    ]
    content |= {"stages": [{**stage, "steps": 2} for stage in stages]} | ({"buffer": 2} if recipe == "dsuta" else {})
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    done = transcribe("--checkpoint", folder, "--data_dir", librispeech, "--subset", "test-tiny", "--greedy", "--use_ttt",
                      "--ttt_recipe", tmp_path / "recipe.json", "--output", results)  # fmt: skip
    assert done.code == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()][1:]
    assert len(lines) == 4
    assert not any(line["message"] or line["ttt_refusal"] for line in lines)
    assert any(line["hypothesis"] != line["hypothesis_without_ttt"] for line in lines)


def test_beside_one_of_ours_on_corrupted_recordings(saved, saved_checkpoint, librispeech, tmp_path):
    flags = f"--data_dir {librispeech} --subset test-tiny --output_dir {tmp_path / 'out'} --conditions clean gaussian:0.01 --batch_size 2"
    systems = [
        f"ours: --checkpoint {saved_checkpoint} --greedy",
        f"Wav2Vec2: --checkpoint {saved()} --greedy --use_ttt",
    ]
    assert evaluate_robustness([*flags.split(), *(part for system in systems for part in ("--system", system))]) == 0
    for system in ("ours", "Wav2Vec2"):
        lines = (tmp_path / "out" / "results" / system / "clean.jsonl").read_text().splitlines()[1:]
        assert len(lines) == 4
        assert all(json.loads(line)["hypothesis"] for line in lines)


def test_what_is_written_for_a_hub_model_is_found_again(tmp_path, monkeypatch):
    """In a folder of its own: another model's weights or statistics must not be taken for it."""
    monkeypatch.chdir(tmp_path)
    folder = checkpoint_folder("someone/hybrid")
    assert folder == Path("models--someone--hybrid") != checkpoint_folder("someone/other")
    folder.mkdir()
    (folder / "lm_weights.json").write_text(
        json.dumps({"best": {"lm_weight": 0.25, "word_score": 2}, "language_model": "../lm.arpa"})
    )
    assert tuned_weights("someone/hybrid", "lm.arpa") == {"lm_weight": 0.25, "word_score": 2}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--freeze_fast_weights"], "has no fast weights"),
        (["--carry_fast_weights", "0.9"], "updates no fast weights"),
        (["--use_ttt", "--ttt_loss_type", "masked_prediction"], "has no masked-prediction head"),
        (["--use_ttt", "--ttt_loss_type", "consistency"], "cannot hide frames"),
        (["--use_ttt", "--ttt_parameters", "fast_weights"], "has no parameters in the group 'fast_weights'"),
    ],
)
def test_what_only_ours_can_do(saved, audio, transcribe, tmp_path, flags, sentence):
    done = transcribe("--checkpoint", saved(), "--audio_file", audio.write(tmp_path / "a.wav"), *flags)
    assert done.code != 0
    assert sentence in done.err
