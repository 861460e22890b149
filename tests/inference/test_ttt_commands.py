"""Recipes, scopes and training statistics from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lact_asr.checkpoint import load_checkpoint
from lact_asr.inference.alignment.ctc_paths import collapse_path
from lact_asr.inference.arguments import parse_arguments
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.feature_statistics import main as write_statistics
from lact_asr.inference.inference_setup import fill_in_defaults, make_recogniser
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.results.results_file import read_results
from lact_asr.inference.ttt.statistics import STATISTICS_NAME, load_statistics


@pytest.fixture
def flags(saved_checkpoint, librispeech, tmp_path) -> list:
    """Of a greedy run over a small corpus, with a checkpoint that files can be put beside."""
    checkpoint = tmp_path / "model" / "best_model.pt"
    checkpoint.parent.mkdir()
    shutil.copy(saved_checkpoint, checkpoint)
    corpus = ["--data_dir", librispeech, "--subset", "test-tiny"]
    return ["--checkpoint", checkpoint, *corpus, "--greedy", "--output", tmp_path / "results.jsonl"]


def hypotheses(flags: list) -> list[str]:
    return [result.hypothesis for result in read_results(flags[-1])]


def test_flags_beside_a_recipe_replace_its_values(transcribe, flags):
    recipe = ["--use_ttt", "--ttt_recipe", "suta", "--ttt_learning_rate", 1e-2]
    result = transcribe(*flags, *recipe, "--ttt_steps", 1)
    assert result.code == 0, result.err
    assert "TTT: entropy, 1 step of adamw at 0.01 on norms,front_end,projection." in result.err
    found = hypotheses(flags)
    same = ["--use_ttt", "--ttt_loss_type", "entropy", "--ttt_steps", 1, "--ttt_learning_rate", 1e-2]
    same += ["--ttt_max_entropy", 1]  # a random model is sure of nothing, and the recipe has no limit
    assert transcribe(*flags, *same, "--ttt_parameters", "norms,front_end,projection").code == 0
    assert hypotheses(flags) == found
    assert transcribe(*flags, *same, "--ttt_parameters", "norms").code == 0
    assert hypotheses(flags) != found


def test_a_stream_does_not_depend_on_batches_and_is_not_resumed(transcribe, flags):
    carried = ["--use_ttt", "--ttt_loss_type", "tent", "--ttt_learning_rate", 5e-3, "--ttt_scope"]
    found = {}
    for scope in ("utterance", "speaker", "stream"):
        result = transcribe(*flags, *carried, scope, "--batch_size", 3)
        assert result.code == 0, result.err
        found[scope] = hypotheses(flags)
    assert transcribe(*flags, *carried, "stream").code == 0
    assert hypotheses(flags) == found["stream"] == found["speaker"] != found["utterance"]  # there is one speaker
    refused = transcribe(*flags, *carried, "stream", "--resume")
    assert refused.code == 2
    assert "--resume cannot take up what TTT had carried" in refused.err


def test_a_search_aims_at_statistics_written_before(transcribe, flags, capsys):
    recipe = ["--use_ttt", "--ttt_recipe", "e_bats", "--ttt_steps", 1, "--max_samples", 1]
    missing = transcribe(*flags, *recipe)
    assert missing.code == 2
    assert "There are no training statistics" in missing.err
    assert write_statistics([str(flag) for flag in flags[:6]]) == 0
    capsys.readouterr()
    path = Path(flags[1]).parent / STATISTICS_NAME
    frames = int(load_file(path)["token_count"].sum())
    model = load_checkpoint(flags[1]).model
    assert frames == 4 * int(model.frame_lengths(torch.tensor(9_600)))  # four recordings of 0.6 s
    assert load_statistics(path, model).hidden_mean.shape == (3, 16)
    result = transcribe(*flags, *recipe)
    assert result.code == 0, result.err
    assert "TTT: e_bats, 1 step of cma_es at 0.01 on feature_offset; carried by stream, momentum 0.9." in result.err


def test_statistics_of_another_model_or_damaged_ones(saved_checkpoint, speaking_model, flags):
    assert write_statistics([str(flag) for flag in flags[:6]]) == 0
    path = Path(flags[1]).parent / STATISTICS_NAME
    with pytest.raises(ValueError, match="are another model's"):
        load_statistics(path, speaking_model(num_hidden_layers=1))
    path.write_bytes(b"1234")
    with pytest.raises(ValueError, match="cannot be read"):
        load_statistics(path, speaking_model())


def test_an_unknown_recipe_is_said_at_once(transcribe, flags):
    result = transcribe(*flags, "--use_ttt", "--ttt_recipe", "nirvana")
    assert result.code == 2
    assert "There is no TTT recipe 'nirvana': choose awmc, cea," in result.err


def test_speakers_need_a_corpus(transcribe, flags, audio, tmp_path):
    path = audio.write(tmp_path / "a.wav")
    scope = ["--use_ttt", "--ttt_loss_type", "tent", "--ttt_scope", "speaker"]
    result = transcribe("--checkpoint", flags[1], "--audio_file", path, *scope)
    assert result.code == 2
    assert "needs a corpus that names its speakers" in result.err


def test_sgem_follows_the_beam_search_with_the_language_model(flags, language_model):
    """The path spells the transcript of 5 beams, whatever the decoder of the results has."""
    checkpoint = load_checkpoint(flags[1])
    recipe = ["--use_ttt", "--ttt_recipe", "sgem", "--lm_path", str(language_model), "--lm_weight", "2"]
    arguments = parse_arguments(["--checkpoint", str(flags[1]), "--audio_file", "a.wav", *recipe])
    arguments = fill_in_defaults(arguments, checkpoint.model.config)
    recogniser = make_recogniser(arguments, checkpoint)
    log_probs = (3 * torch.randn(12, 32)).log_softmax(-1)
    vocabulary, lm = checkpoint.processor.vocabulary, load_language_model(language_model)
    decoder = make_decoder(
        vocabulary, 0, beam_size=5, language_model=lm, lm_weight=2.0, word_score=arguments.word_score
    )
    text = decoder.decode(log_probs).text
    assert text
    labels = collapse_path(recogniser.trainer.guides.find_path(log_probs), 0).tolist()
    assert labels == [vocabulary["|" if character == " " else character] for character in text]
