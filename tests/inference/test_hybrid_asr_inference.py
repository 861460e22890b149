"""The inference command in this process: every kind of input, decoder and report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from lact_asr.checkpoint import load_checkpoint, save_checkpoint
from lact_asr.inference import evaluation
from lact_asr.inference.arguments import parse_arguments
from lact_asr.inference.convert_results import main as convert
from lact_asr.inference.hybrid_asr_inference import main
from lact_asr.inference.inference_setup import fill_in_defaults, make_recogniser
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.results.results_file import ResultsWriter, read_results
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.text import build_vocabulary

ROOT = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("LACT_ASR_DATA", ROOT.parent / "shared" / "data"))


def transcripts(output: str) -> dict[str, str]:
    return dict(line.split("\t") for line in output.splitlines())


@pytest.fixture
def with_language_model(saved_checkpoint, language_model, tmp_path) -> Path:
    """The checkpoint in a folder with ``lm.arpa`` beside it."""
    folder = tmp_path / "with_lm"
    folder.mkdir()
    shutil.copy(saved_checkpoint, folder)
    shutil.copy(language_model, folder / "lm.arpa")
    return folder / "best_model.pt"


# What is transcribed


def test_files_and_folders(transcribe, saved_checkpoint, audio, tmp_path):
    paths = [audio.write(tmp_path / "in" / name, seed=i) for i, name in enumerate(("a.wav", "b.flac", "deep/c.ogg"))]
    one = transcribe("--checkpoint", saved_checkpoint, "--audio_file", paths[1], "--greedy")
    several = transcribe("--checkpoint", saved_checkpoint, "--audio_file", *paths, "--greedy")
    folder = transcribe("--checkpoint", saved_checkpoint, "--audio_dir", tmp_path / "in", "--greedy")
    assert (one.code, several.code, folder.code) == (0, 0, 0)
    assert several.out == folder.out
    assert list(transcripts(several.out)) == [str(path) for path in paths]
    assert transcripts(one.out) == {str(paths[1]): transcripts(several.out)[str(paths[1])]}
    assert len(set(transcripts(several.out).values())) == 3
    assert "Decoding: greedy." in one.err
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl")) == []


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff", "a.wav"])
def test_rates_channels_and_containers(transcribe, saved_checkpoint, audio, tmp_path, name):
    """Stereo at 44.1 kHz whose mean is the recording; lossless containers spell exactly the same."""
    mono = soxr.resample(audio.make(1.0), 16_000, 44_100)
    side = 0.05 * np.sin(np.arange(len(mono)) / 9)
    soundfile.write(tmp_path / name, np.stack([mono + side, mono - side], axis=1), 44_100)
    result = transcribe("--checkpoint", saved_checkpoint, "--audio_file", tmp_path / name, "--greedy")
    assert result.code == 0
    text = transcripts(result.out)[str(tmp_path / name)]
    assert len(text) > 10
    if name.endswith((".flac", ".aiff")):
        soundfile.write(tmp_path / "reference.wav", np.stack([mono + side, mono - side], axis=1), 44_100)
        reference = transcribe("--checkpoint", saved_checkpoint, "--audio_file", tmp_path / "reference.wav", "--greedy")
        assert transcripts(reference.out)[str(tmp_path / "reference.wav")] == text


@pytest.mark.parametrize("dataset_type", ["librispeech", "manifest"])
def test_a_corpus_subset(transcribe, saved_checkpoint, librispeech, tmp_path, dataset_type):
    flags = ["--checkpoint", saved_checkpoint, "--greedy", "--output", tmp_path / "out" / "results.jsonl"]
    if dataset_type == "manifest":
        lines = [
            {"audio_filepath": str(path), "text": "A Dog saw the cat.", "duration": 0.6}
            for path in sorted(librispeech.rglob("*.flac"))
        ]
        (tmp_path / "test-tiny.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        flags += ["--data_dir", tmp_path, "--dataset_type", "manifest"]
    else:
        flags += ["--data_dir", librispeech]
    result = transcribe(*flags, "--subset", "test-tiny")
    assert result.code == 0
    header, _, row = ([cell.strip() for cell in line.split("|")] for line in result.out.strip().splitlines())
    row = dict(zip(header, row, strict=True))
    assert row["utterances"] == "4"
    assert "failed" not in row
    assert float(row["real-time factor"]) > 0
    results = read_results(tmp_path / "out" / "results.jsonl")
    errors = sum(result.word_errors.errors for result in results)
    words = sum(result.word_errors.reference_length for result in results)
    assert row["words"] == str(words) == {"librispeech": "22", "manifest": "20"}[dataset_type]
    assert row["WER %"] == f"{100 * errors / words:.2f}"
    assert f"Results: {tmp_path / 'out' / 'results.jsonl'}" in result.err


def test_parts_of_a_long_recording(transcribe, saved_checkpoint, audio, tmp_path):
    """A manifest may cut utterances out of one file: each is transcribed as if it were a file of its own."""
    samples = audio.make(2.0)
    soundfile.write(tmp_path / "long.wav", samples, 16_000)
    lines = []
    for start, end in ((0, 12_000), (12_000, 24_000)):
        soundfile.write(tmp_path / f"{start}.wav", samples[start:end], 16_000)
        part = {"offset": start / 16_000, "duration": (end - start) / 16_000, "id": str(tmp_path / f"{start}.wav")}
        lines.append({"audio_filepath": "long.wav", "text": "A CAT", **part})
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--checkpoint", saved_checkpoint, "--greedy", "--output", tmp_path / "r.jsonl"]
    assert transcribe(*flags, "--data_dir", tmp_path, "--subset", "parts", "--dataset_type", "manifest").code == 0
    parts = {result.id: result.hypothesis for result in read_results(tmp_path / "r.jsonl")}
    alone = transcribe(*flags, "--audio_file", tmp_path / "0.wav", tmp_path / "12000.wav")
    assert parts == transcripts(alone.out)
    assert len(set(parts.values())) == 2


def test_utterances_of_more_than_a_minute_are_cut_as_files_are(transcribe, saved_checkpoint, audio, tmp_path):
    path = audio.write(tmp_path / "long.flac", 70)
    (tmp_path / "corpus").mkdir()
    entries = [{"id": "whole"}, {"id": "part", "offset": 2.0, "duration": 65.0}]
    lines = [
        json.dumps({"audio_filepath": str(path), "text": "SO MUCH", "duration": 70.0, **entry}) for entry in entries
    ]
    (tmp_path / "corpus" / "talks.jsonl").write_text("\n".join(lines))
    subset = ("--data_dir", tmp_path / "corpus", "--dataset_type", "manifest", "--subset", "talks.jsonl")
    file = transcribe("--checkpoint", saved_checkpoint, "--audio_file", path, "--greedy")
    corpus = transcribe(
        "--checkpoint", saved_checkpoint, *subset, "--greedy", "--word_times", "--output", tmp_path / "r.jsonl"
    )
    assert (file.code, corpus.code) == (0, 0)
    whole, part = read_results(tmp_path / "r.jsonl")
    assert whole.hypothesis == transcripts(file.out)[str(path)]
    assert 60 < part.words[-1].end_seconds <= 65


def test_hot_words_need_no_wide_beam(transcribe, saved_checkpoint, audio, tmp_path):
    path = audio.write(tmp_path / "a.wav")
    flags = ("--checkpoint", saved_checkpoint, "--audio_file", path, "--beam_size", 1)
    heard = transcribe(*flags, "--hot_words", "ZORK")
    assert "beam search, 1 beam, no language model, hot words ZORK" in heard.err
    assert "Decoding: greedy." in transcribe(*flags).err


def test_a_hub_model_brings_its_language_model_and_weights(saved_checkpoint, language_model, audio, tmp_path):
    """From the cache, where a download leaves it: no network is needed."""
    repository = tmp_path / "cache" / "models--someone--hybrid"
    snapshot = repository / "snapshots" / "0123"
    loaded = load_checkpoint(saved_checkpoint)
    loaded.model.save_pretrained(snapshot)
    loaded.processor.save_pretrained(snapshot)
    shutil.copy(language_model, snapshot / "lm.arpa")
    (snapshot / "lm_weights.json").write_text(json.dumps({"best": {"lm_weight": 0.25, "word_score": 1.5}}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    command = [sys.executable, ROOT / "inference" / "hybrid_asr_inference.py", "--checkpoint", "someone/hybrid"]
    done = subprocess.run(
        [*map(str, command), "--audio_file", str(audio.write(tmp_path / "a.wav"))], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lm.arpa (weight 0.25, word score 1.5)" in done.stderr


def test_results_of_a_subset_go_beside_the_checkpoint(transcribe, with_language_model, librispeech):
    flags = ["--checkpoint", with_language_model, "--data_dir", librispeech, "--subset", "test-tiny"]
    for more in (["--greedy"], ["--beam_size", 4], ["--beam_size", 4, "--use_ttt"]):
        assert transcribe(*flags, *more).code == 0
    names = sorted(path.name for path in with_language_model.parent.glob("*.jsonl"))
    assert names == [
        "results_test-tiny_beam4.jsonl",
        "results_test-tiny_beam4_ttt.jsonl",
        "results_test-tiny_greedy.jsonl",
    ]


def test_max_samples(transcribe, saved_checkpoint, librispeech, tmp_path):
    flags = ["--checkpoint", saved_checkpoint, "--greedy", "--max_samples", 3, "--output", tmp_path / "r.jsonl"]
    assert transcribe(*flags, "--data_dir", librispeech, "--subset", "test-tiny").code == 0
    assert [result.id for result in read_results(tmp_path / "r.jsonl")] == ["7-1-0000", "7-1-0001", "7-2-0000"]
    assert len(transcripts(transcribe(*flags, "--audio_dir", librispeech).out)) == 3


def test_a_save_pretrained_folder(transcribe, saved_checkpoint, audio, tmp_path):
    loaded = load_checkpoint(saved_checkpoint)
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.processor.save_pretrained(tmp_path / "saved")
    path = audio.write(tmp_path / "a.wav")
    outputs = {
        transcribe("--checkpoint", checkpoint, "--audio_file", path, "--greedy").out
        for checkpoint in (saved_checkpoint, tmp_path / "saved")
    }
    assert len(outputs) == 1
    assert str(path) in outputs.pop()


# How it is decoded


def test_decoders(transcribe, with_language_model, audio, tmp_path):
    path = audio.write(tmp_path / "a.wav", seconds=1.5)
    flags = ["--checkpoint", with_language_model, "--audio_file", path]
    runs = {
        "greedy": transcribe(*flags, "--greedy"),
        "beam of one": transcribe(*flags, "--beam_size", 1, "--lm_path", "none"),
        "beam": transcribe(*flags, "--lm_path", "none"),
        "language model": transcribe(*flags),
        "given": transcribe(*flags, "--lm_path", with_language_model.with_name("lm.arpa")),
        "few words": transcribe(*flags, "--lm_weight", 0, "--word_score", -50),
        "narrow": transcribe(*flags, "--beam_threshold", 0.01),
        "moved": transcribe(*flags, "--move_emission_to_cpu"),
    }
    assert {run.code for run in runs.values()} == {0}
    assert runs["greedy"].out == runs["beam of one"].out
    assert runs["language model"].out == runs["given"].out == runs["moved"].out
    assert runs["language model"].out != runs["beam"].out
    assert runs["language model"].out != runs["narrow"].out
    words = {name: transcripts(run.out)[str(path)].split() for name, run in runs.items()}
    known = load_language_model(with_language_model.with_name("lm.arpa")).words
    assert known.issuperset(words["language model"])
    assert not known.issuperset(words["beam"])
    assert len(words["few words"]) == 1 < len(words["language model"])
    assert "beam search, 50 beams, no language model" in runs["beam"].err
    assert f"language model {with_language_model.with_name('lm.arpa')} (weight 0.5, word score 1.5)" in (
        runs["language model"].err
    )


def test_tuned_weights_beside_the_checkpoint(transcribe, with_language_model, audio, tmp_path):
    path = audio.write(tmp_path / "a.wav")
    tuned = with_language_model.with_name("lm_weights.json")
    tuned.write_text(json.dumps({"best": {"lm_weight": 0.25, "word_score": -2}, "language_model": "lm.arpa"}))
    flags = ["--checkpoint", with_language_model, "--audio_file", path]
    assert "(weight 0.25, word score -2)" in transcribe(*flags).err
    assert "(weight 0.25, word score 3)" in transcribe(*flags, "--word_score", 3).err
    other = shutil.copy(with_language_model.with_name("lm.arpa"), tmp_path / "other.arpa")
    assert "(weight 0.5, word score 1.5)" in transcribe(*flags, "--lm_path", other).err
    tuned.write_text("{}")
    failed = transcribe(*flags)
    assert failed.code == 2
    assert failed.err.startswith(f"error: {tuned} does not hold tuned")


# Fast weights


def test_frozen_fast_weights(transcribe, speaking_model, saved_checkpoint, audio, tmp_path):
    path = audio.write(tmp_path / "a.wav")
    flags = ["--audio_file", path, "--greedy", "--use_ttt", "--ttt_steps", 0]
    save_checkpoint(tmp_path / "frozen.pt", speaking_model(update_fast_weights=False), build_vocabulary())
    frozen = transcribe("--checkpoint", saved_checkpoint, "--freeze_fast_weights", *flags)
    assert frozen.out == transcribe("--checkpoint", tmp_path / "frozen.pt", *flags).out
    assert frozen.out != transcribe("--checkpoint", saved_checkpoint, *flags).out
    assert "Decoding: greedy. Fast weights are not updated. TTT:" in frozen.err


def test_freezing_leaves_the_loaded_model_to_others_and_shares_its_weights(saved_checkpoint, audio):
    checkpoint = load_checkpoint(saved_checkpoint)
    learning, frozen = (
        make_recogniser(fill_in_defaults(parse_arguments(flags), checkpoint.model.config), checkpoint)
        for flags in (
            ["--checkpoint", str(saved_checkpoint), "--audio_file", "a.wav", "--greedy", *more]
            for more in ([], ["--freeze_fast_weights"])
        )
    )
    before = learning.emission(audio.make())
    assert (frozen.emission(audio.make()) - before).abs().max() > 1e-2
    assert (learning.emission(audio.make()) == before).all()
    for mine, other in zip(frozen.model.parameters(), learning.model.parameters(), strict=True):
        assert mine is other


def test_a_model_without_fast_weights_says_so(transcribe, speaking_model, audio, tmp_path):
    save_checkpoint(tmp_path / "none.pt", speaking_model(use_fast_weights=False), build_vocabulary())
    flags = ["--checkpoint", tmp_path / "none.pt", "--audio_file", audio.write(tmp_path / "a.wav"), "--greedy"]
    assert transcribe(*flags, "--use_ttt").code == 0
    frozen = transcribe(*flags, "--freeze_fast_weights")
    assert frozen.code == 2
    assert frozen.err.endswith("none.pt has no fast weights for --freeze_fast_weights to freeze.\n")
    adapted = transcribe(*flags, "--use_ttt", "--ttt_parameters", "fast_weights")
    assert adapted.code == 2
    assert "has no parameters in the group 'fast_weights' for TTT to adapt." in adapted.err


# Test-time training


@pytest.mark.parametrize("loss_type", ["masked_prediction", "entropy", "tent+0.5*consistency"])
def test_ttt_shows_both_transcripts(transcribe, saved_checkpoint, audio, tmp_path, loss_type):
    paths = [audio.write(tmp_path / f"{number}.wav", seed=number) for number in range(2)]
    flags = ["--checkpoint", saved_checkpoint, "--audio_file", *paths, "--greedy"]
    plain = transcripts(transcribe(*flags).out)
    adapted = transcribe(
        *flags, "--use_ttt", "--ttt_loss_type", loss_type, "--ttt_steps", 2, "--ttt_learning_rate", 0.01,
        "--ttt_max_entropy", 1, "--output", tmp_path / "r.jsonl",
    )  # fmt: skip
    assert adapted.code == 0
    assert f"TTT: {loss_type}, 2 steps of adamw at 0.01 on norms" in adapted.err
    shown = transcripts(adapted.out)
    for path, result in zip(map(str, paths), read_results(tmp_path / "r.jsonl"), strict=True):
        assert shown[f"{path} (without TTT)"] == plain[path] == result.hypothesis_without_ttt
        assert shown[path] == result.hypothesis != plain[path]


def test_ttt_defaults_come_from_the_model(transcribe, saved_checkpoint, audio, tmp_path):
    path = audio.write(tmp_path / "a.wav")
    flags = ["--checkpoint", saved_checkpoint, "--audio_file", path, "--greedy", "--use_ttt"]
    assert "TTT: masked_prediction, 1 step of adamw at 0.001 on norms." in transcribe(*flags).err
    entropy = transcribe(*flags, "--ttt_loss_type", "entropy", "--ttt_chunk_size", 12)
    step = "TTT: entropy, 1 step of adamw at 0.002 on norms,front_end"
    assert f"{step}, 1 layer frozen, constant fast-weight updates." in entropy.err
    full = transcribe(*flags, "--ttt_loss_type", "entropy", "--no-ttt_constant_updates", "--ttt_frozen_layers", 0)
    assert f"{step}." in full.err
    outputs = {
        transcribe(*flags, "--ttt_steps", 2, "--ttt_learning_rate", 1e-2, *more).out
        for more in ([], ["--ttt_mask_prob", 0.5], ["--ttt_parameters", "fast_weights, output"], ["--seed", 1])
    }
    assert len(outputs) == 4


def test_a_model_without_the_head_takes_entropy(transcribe, speaking_model, saved_checkpoint, audio, tmp_path):
    save_checkpoint(tmp_path / "plain.pt", speaking_model(enable_ttt=False), build_vocabulary())
    flags = ["--audio_file", audio.write(tmp_path / "a.wav"), "--greedy", "--use_ttt"]
    bare = transcribe("--checkpoint", tmp_path / "plain.pt", *flags)
    assert bare.code == 0, bare.err
    assert "TTT: entropy, 1 step of adamw at 0.002 on norms,front_end, 1 layer frozen" in bare.err
    assert bare.err.count("takes the TTT loss entropy, as it has no masked-prediction head.") == 1
    named = transcribe("--checkpoint", tmp_path / "plain.pt", *flags, "--ttt_loss_type", "entropy")
    assert (named.out, "takes the TTT loss" in named.err) == (bare.out, False)
    assert "takes the TTT loss masked_prediction, which" in transcribe("--checkpoint", saved_checkpoint, *flags).err


def test_refusals_and_silence_are_reported(transcribe, saved_checkpoint, audio, tmp_path):
    paths = [audio.write(tmp_path / f"{number}.wav", 0.1 if number else 0.7) for number in range(3)]
    flags = ["--checkpoint", saved_checkpoint, "--greedy", "--audio_file", *paths]
    adapted = transcribe(*flags, "--use_ttt")
    assert "TTT left 2 utterances as they were: the utterance is too short to mask." in adapted.err
    uncertain = transcribe(*flags, "--use_ttt", "--ttt_loss_type", "entropy", "--ttt_max_entropy", 0.01)
    assert "the output is too uncertain to learn from (above --ttt_max_entropy 0.01)." in uncertain.err
    of_recipe = transcribe(*flags, "--use_ttt", "--ttt_recipe", "suta", "--ttt_max_entropy", 0.02)
    assert "too uncertain to learn from (above --ttt_max_entropy 0.02)." in of_recipe.err
    without = transcribe(*flags, "--ttt_steps", 3, "--ttt_learning_rate", 0.1)
    assert "without effect: --ttt_steps, --ttt_learning_rate." in without.err


def test_nothing_recognised_is_said(transcribe, speaking_model, audio, tmp_path):
    import torch

    model = speaking_model()
    with torch.no_grad():
        model.ctc_head.bias[0] = 1e3
    save_checkpoint(tmp_path / "silent.pt", model, build_vocabulary())
    path = audio.write(tmp_path / "a.wav")
    result = transcribe("--checkpoint", tmp_path / "silent.pt", "--audio_file", path)
    assert (result.code, result.out) == (0, f"{path}\t\n")
    assert "No speech was recognised in 1 of 1 recordings." in result.err


# Results files


def test_results_file(transcribe, saved_checkpoint, librispeech, tmp_path):
    output = tmp_path / "r.jsonl"
    flags = ["--checkpoint", saved_checkpoint, "--data_dir", librispeech, "--subset", "test-tiny", "--output", output]
    assert transcribe(*flags, "--use_ttt", "--beam_size", 3).code == 0
    settings, *lines = [json.loads(line) for line in output.read_text().splitlines()]
    settings = settings["settings"]
    assert settings["checkpoint"] == str(saved_checkpoint)
    assert (settings["beam_size"], settings["lm_path"]) == ("3", "none")
    assert (settings["ttt_loss_type"], settings["ttt_parameters"]) == ("masked_prediction", "norms")
    assert "output" not in settings
    assert [line["id"] for line in lines] == ["7-1-0000", "7-1-0001", "7-2-0000", "7-2-0001"]
    first = lines[0]
    assert first["reference"] == "THE CAT SAT ON THE MAT"
    assert first["message"] is None
    assert first["audio_seconds"] == pytest.approx(0.6)
    assert first["compute_seconds"] > 0
    assert first["hypothesis_without_ttt"] is not None
    counted = first["word_errors"]
    assert counted["hits"] + counted["substitutions"] + counted["deletions"] == 6
    assert set(first) == {
        "id", "reference", "hypothesis", "hypothesis_without_ttt", "word_errors", "word_errors_without_ttt",
        "character_errors", "character_errors_without_ttt", "audio_seconds", "compute_seconds", "message",
        "ttt_refusal",
    }  # fmt: skip


def test_resuming(transcribe, saved_checkpoint, librispeech, tmp_path):
    output = tmp_path / "r.jsonl"
    flags = ["--checkpoint", saved_checkpoint, "--data_dir", librispeech, "--subset", "test-tiny", "--output", output]
    whole = transcribe(*flags, "--greedy").out
    complete = output.read_bytes()
    output.write_bytes(complete[: complete.rfind(b"7-2-0000") + 40])  # killed inside the third result
    assert transcribe(*flags, "--greedy", "--resume").code == 0
    assert [result.id for result in read_results(output)] == ["7-1-0000", "7-1-0001", "7-2-0000", "7-2-0001"]
    assert output.read_bytes()[:300] == complete[:300]
    again = transcribe(*flags, "--greedy", "--resume")
    assert again.out == whole or again.out.splitlines()[0] == whole.splitlines()[0]
    other = transcribe(*flags, "--beam_size", 7, "--resume")
    assert other.code == 2
    assert "was written with beam_size '1', not '7'" in other.err


def test_default_results_of_other_settings_are_kept(transcribe, saved_checkpoint, librispeech, tmp_path):
    shutil.copy(saved_checkpoint, tmp_path)
    flags = ["--checkpoint", tmp_path / "best_model.pt", "--data_dir", librispeech, "--subset", "test-tiny", "--greedy"]
    flags += ["--use_ttt", "--ttt_max_entropy", 1]
    entropy, tent = ["--ttt_loss_type", "entropy"], ["--ttt_loss_type", "tent"]
    for _ in range(2):  # the same again replaces it
        assert transcribe(*flags, *entropy).code == 0
    results = tmp_path / "results_test-tiny_greedy_ttt.jsonl"
    before = results.read_bytes()
    for other, difference in (
        (
            tent,
            "(ttt_loss_type entropy, not tent, ttt_constant_updates True, not False, ttt_frozen_layers 1, not 0 and",
        ),
        (["--ttt_recipe", "tent"], "(another ttt_recipe, ttt_loss_type entropy, not None, "),
        ([*entropy, "--seed", 1], "(seed 0, not 1): give --output another file, or --overwrite"),
    ):
        refused = transcribe(*flags, *other)
        assert (refused.code, difference in refused.err) == (2, True), refused.err
        assert results.read_bytes() == before
    assert transcribe(*flags, *tent, "--output", tmp_path / "tent.jsonl").code == 0
    assert results.read_bytes() == before
    assert transcribe(*flags, *tent, "--overwrite").code == 0
    assert results.read_bytes() != before


# Other formats


def test_formats_of_recordings(transcribe, saved_checkpoint, audio, tmp_path):
    paths = [audio.write(tmp_path / "in" / name, 1.2, seed=i) for i, name in enumerate(("a.wav", "b.flac"))]
    flags = ["--checkpoint", saved_checkpoint, "--greedy", "--audio_file"]
    texts = transcripts(transcribe(*flags, *paths).out)
    one = transcribe(*flags, paths[0], "--output_format", "srt")
    assert one.out.startswith("1\n00:00:0")
    assert " ".join(line for line in one.out.splitlines() if line[:1].isalpha()) == texts[str(paths[0])]
    several = transcribe(*flags, *paths, "--output_format", "vtt", "--output", tmp_path / "vtt")
    assert transcripts(several.out) == texts
    assert (tmp_path / "vtt" / "b.vtt").read_text().startswith("WEBVTT\n\n00:")
    assert str(tmp_path / "vtt" / "a.vtt") in several.err
    assert transcribe(*flags, *paths, "--use_ttt", "--output", tmp_path / "both.ctm").code == 0
    ctm = [line.split() for line in (tmp_path / "both.ctm").read_text().splitlines()]
    assert {line[0] for line in ctm} == {"a", "b"}
    assert all(0 <= float(start) < float(start) + float(duration) <= 1.2 for _, _, start, duration, *_ in ctm)
    lines = [
        json.loads(line)
        for line in transcribe(*flags, *paths, "--output_format", "jsonl", "--word_times").out.splitlines()
    ]
    assert {line["id"]: " ".join(word["text"] for word in line["words"]) for line in lines} == texts
    refused = transcribe(*flags, *paths, "--output", tmp_path / "a.srt")
    assert (refused.code, refused.out) == (2, "")
    assert "give --output a folder" in refused.err


def test_formats_of_a_corpus_come_from_a_results_file_that_can_be_resumed(
    transcribe, saved_checkpoint, librispeech, tmp_path
):
    shutil.copy(saved_checkpoint, tmp_path)
    flags = ["--checkpoint", tmp_path / "best_model.pt", "--data_dir", librispeech, "--subset", "test-tiny", "--greedy"]
    assert transcribe(*flags, "--output", tmp_path / "all.ctm").code == 0
    whole = (tmp_path / "all.ctm").read_text()
    results = tmp_path / "results_test-tiny_greedy.jsonl"
    content = results.read_bytes()
    results.write_bytes(content[: content.rfind(b"7-2-0000") + 40])  # killed inside the third result
    resumed = transcribe(*flags, "--output", tmp_path / "all.ctm", "--resume")
    assert resumed.code == 0
    assert (tmp_path / "all.ctm").read_text() == whole
    assert {line.split()[0] for line in whole.splitlines()} == {"7-1-0000", "7-1-0001", "7-2-0000", "7-2-0001"}
    assert convert(["--results", str(results), "--output", str(tmp_path / "again.ctm")]) == 0
    assert (tmp_path / "again.ctm").read_text() == whole
    assert transcribe(*flags, "--output_format", "ctm").code == 2


def test_text_and_json_lines_are_converted_without_word_times(tmp_path):
    with ResultsWriter(tmp_path / "r.jsonl") as writer:
        writer.write(UtteranceResult("a.wav", None, "THE CAT", audio_seconds=1.0))
    for name in ("a.txt", "a.jsonl"):
        assert convert(["--results", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.txt").read_text() == "a.wav\tTHE CAT\n"
    (line,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert (line["text"], line["words"]) == ("THE CAT", None)


def test_results_that_cannot_be_converted(transcribe, saved_checkpoint, librispeech, tmp_path, capsys):
    flags = ["--checkpoint", saved_checkpoint, "--data_dir", librispeech, "--subset", "test-tiny", "--greedy"]
    assert transcribe(*flags, "--output", tmp_path / "r.jsonl").code == 0
    for arguments, reason in (
        (["--output_format", "ctm"], "has no word times; transcribe with --word_times"),
        (["--output", str(tmp_path / "x")], "Give --output_format"),
        (["--output", str(tmp_path / "r.jsonl")], "r.jsonl is also read: choose another file"),
    ):
        assert convert(["--results", str(tmp_path / "r.jsonl"), *arguments]) == 2
        assert reason in capsys.readouterr().err


# As users start it


def test_the_script_by_path(saved_checkpoint, audio, tmp_path):
    """Started from another folder, as the README writes it; stdout holds the transcript and nothing else."""
    path = audio.write(tmp_path / "a.wav")
    script = ROOT / "inference" / "hybrid_asr_inference.py"
    command = [sys.executable, str(script), "--checkpoint", str(saved_checkpoint), "--audio_file", str(path)]
    result = subprocess.run([*command, "--use_ttt"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2
    assert result.stdout.startswith(f"{path}\t")
    assert "Warning" not in result.stderr


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("audio_file", "data_dir", "subset", "use_ttt", "ttt_loss_type", "beam_size", "move_emission_to_cpu",
                 "lm_weight", "word_score", "beam_threshold", "max_samples", "resume", "output",
                 "word_times", "output_format"):  # fmt: skip
        assert f"--{flag}" in text


@pytest.mark.real_data
@pytest.mark.skipif(
    not (REAL_DATA / "librispeech_excerpt").is_dir(), reason=f"no real recordings in {REAL_DATA} (LACT_ASR_DATA)"
)
def test_real_librispeech(transcribe, saved_checkpoint, tmp_path):
    """The layout of the real corpus is read, transcribed with TTT and scored; what the random model says is noise."""
    result = transcribe(
        "--checkpoint", saved_checkpoint, "--data_dir", REAL_DATA / "librispeech_excerpt", "--subset", "dev-clean",
        "--use_ttt", "--greedy", "--output", tmp_path / "r.jsonl",
    )  # fmt: skip
    assert result.code == 0
    (scored,) = read_results(tmp_path / "r.jsonl")
    assert scored.id == "2412-153948-0000"
    assert scored.word_errors.reference_length == len(scored.reference.split()) > 10
    assert scored.audio_seconds > 5
    assert "WER % without TTT" in result.out


def test_decoding_processes_change_nothing_but_time(
    transcribe, saved_checkpoint, librispeech, language_model, tmp_path
):
    results = []
    for processes in (0, 2):
        path = tmp_path / f"{processes}.jsonl"
        flags = ("--lm_path", language_model, "--beam_size", 8, "--n_best", 3, "--word_times", "--output", path)
        done = transcribe(
            "--checkpoint", saved_checkpoint, "--data_dir", librispeech, "--subset", "test-tiny", *flags,
            "--decoding_processes", processes,
        )  # fmt: skip
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        results.append([{**line, "compute_seconds": None} for line in lines])
    assert results[0] == results[1]
    assert any(len(line.get("alternatives", ())) == 2 for line in results[0][1:])


def test_greedy_refuses_what_it_cannot_do(transcribe, saved_checkpoint, audio, tmp_path):
    recording = audio.write(tmp_path / "a.wav", 0.5)
    for flags in (("--n_best", 2), ("--hot_words", "CAT")):
        done = transcribe("--checkpoint", saved_checkpoint, "--audio_file", recording, "--greedy", *flags)
        assert done.code != 0
        assert "--greedy has one transcript" in done.err


def test_subtitles_of_a_job_that_stops_are_there_for_what_was_done(transcribe, saved_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number, name in enumerate("abc"):
        soundfile.write(
            tmp_path / "in" / f"{name}.wav", 0.1 * np.random.default_rng(number).standard_normal(9_600), 16_000
        )
    (tmp_path / "in" / "b.wav").write_bytes(b"RIFF")
    started, real = [], evaluation._start

    def start(utterances, recognise):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(utterances)
        return real(utterances, recognise)

    flags = ("--checkpoint", saved_checkpoint, "--audio_dir", tmp_path / "in", "--greedy", "--batch_size", 1)
    flags += ("--output_format", "srt", "--output")
    monkeypatch.setattr(evaluation, "_start", start)
    assert transcribe(*flags, tmp_path / "stopped").code == 130
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["a.srt"]
    monkeypatch.undo()
    whole = transcribe(*flags, tmp_path / "whole")
    assert whole.code == 0
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["a.srt", "c.srt"]
    assert (tmp_path / "stopped" / "a.srt").read_text() == (tmp_path / "whole" / "a.srt").read_text()
    assert f"1 of 3 recordings could not be transcribed: {tmp_path / 'in' / 'b.wav'}." in whole.err
