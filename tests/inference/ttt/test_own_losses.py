"""Losses of one's own, named on the command line: the example of the documents, what is refused, and who may not name one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.inference.results.results_file import read_results, read_settings
from lact_asr.inference.ttt.losses import WeightedSum
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt_procedure import TestTimeTrainer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "own_objective.md"


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module into a new current folder; its name is another each time, as Python imports a module once."""

    def write(source: str) -> str:
        name = f"losses_of_{re.sub(r'[^a-z0-9]', '_', tmp_path.name.lower())}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        return name

    return write


@pytest.fixture
def example(own_module) -> str:
    """The documents' example: the name that the command line takes."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return f"{own_module(source)}:peaky_entropy"


def test_the_example_of_the_documents_adapts(example, speaking_model):
    model, audio = speaking_model().eval(), torch.randn(8_000, generator=torch.Generator().manual_seed(0))
    outcome = TestTimeTrainer(model, TTTSettings(example, steps=3, learning_rate=1e-4, max_entropy=1)).adapt(audio)
    assert outcome.adapted, outcome.reason
    assert outcome.losses[-1] < outcome.losses[0]
    logits = model(audio[None]).logits[0]
    entropy = torch.distributions.Categorical(logits=logits).entropy().sort(descending=True).values
    assert outcome.losses[0] == pytest.approx(float(entropy[: len(entropy) // 3].mean()), rel=1e-4)


def test_its_attributes_are_defaults_and_sums_take_it(example):
    ((_, entropy), (weight, mine)) = WeightedSum.parse(f"entropy+0.3*{example}").terms
    assert weight == 0.3
    assert (mine.parameters, mine.learning_rate) == (("norms", "front_end"), 1e-3)
    assert entropy is WeightedSum.parse("entropy").terms[0][1]


@pytest.mark.parametrize("groups", ["'norms,biases'", "['norms', 'biases']"])
def test_parameters_are_text_as_on_the_command_line_or_names(own_module, groups):
    name = own_module(f"def loss(logits, blank_id):\n    return logits.sum()\nloss.parameters = {groups}\n")
    assert WeightedSum.parse(f"{name}:loss").parameters == ("norms", "biases")


def test_parameters_that_there_are_not(own_module):
    name = own_module("def loss(logits, blank_id):\n    return logits.sum()\nloss.parameters = 'norm'\n")
    with pytest.raises(InputError, match="Unknown parameter group 'norm'"):
        WeightedSum.parse(f"{name}:loss")


def test_by_the_command_and_its_results_name_it(example, transcribe, saved_checkpoint, librispeech, tmp_path):
    output = tmp_path / "mine.jsonl"
    flags = ("--data_dir", librispeech, "--subset", "test-tiny", "--greedy", "--use_ttt", "--ttt_max_entropy", 1)
    result = transcribe("--checkpoint", saved_checkpoint, *flags, "--ttt_loss_type", example, "--output", output)
    assert result.code == 0, result.err
    assert all(row.hypothesis_without_ttt is not None for row in read_results(output))
    settings = read_settings(output)
    assert settings["ttt_loss_type"] == example
    assert float(settings["ttt_learning_rate"]) == 1e-3


@pytest.mark.parametrize(
    ("source", "function", "sentence"),
    [
        ("", "loss", r"has no function 'loss'"),
        ("import nothing_of_that_name", "loss", r"cannot be imported \(ModuleNotFoundError: No module named"),
        ("1 / 0", "loss", r"cannot be imported \(ZeroDivisionError"),
        ("def loss(logits, blank_id):\n    return logits.sum(-1)", "loss", r"must return a scalar tensor, not a tensor \[\d+\]"),
        ("def loss(logits, blank_id):\n    return 1.0", "loss", r"must return a scalar tensor, not float"),
    ],
)  # fmt: skip
def test_what_is_no_loss_is_refused_in_one_sentence(own_module, speaking_model, source, function, sentence):
    name = f"{own_module(source)}:{function}"
    model = speaking_model(num_hidden_layers=1).eval()
    with pytest.raises(InputError, match=rf"{name}.*{sentence}"):
        TestTimeTrainer(model, TTTSettings(name, max_entropy=1)).adapt(torch.randn(8_000))


def test_a_module_that_is_not_there(speaking_model):
    with pytest.raises(InputError, match="No module named 'no_module_of_mine'"):
        TTTSettings("no_module_of_mine:loss")


def test_no_configuration_names_code(example):
    with pytest.raises(InputError, match="can adapt by it, but not be trained for it"):
        HybridASRConfig(ttt_loss_type=example)
