"""Front-end layers that do not adapt: they run once an utterance, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from lact_asr.errors import InputError
from lact_asr.inference.ttt import frozen_layers
from lact_asr.inference.ttt.frozen_layers import layers_below, remembered, without_layers
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt_procedure import TestTimeTrainer
from lact_asr.ttt_names import FEATURE_OFFSET
from lact_asr.ttt_parameters import front_end_of, select_parameters


def passes_of(layers) -> list[int]:
    """How often each layer computes, counted by its convolution."""
    counts = [0] * len(layers)

    def count(index):
        def counting(*_):
            counts[index] += 1

        return counting

    for index, layer in enumerate(layers):
        layer.activation = _Counting(layer.activation, count(index))
    return counts


class _Counting(torch.nn.Module):
    def __init__(self, function, count) -> None:
        super().__init__()
        self.function, self.count = function, count

    def forward(self, hidden):
        self.count()
        return self.function(hidden)


@pytest.fixture
def rows(audio):
    """[3, samples] float64 with a shorter and a much shorter row, and the mask."""
    lengths = [11200, 8000, 4000]
    samples, mask = torch.zeros(3, 11200, dtype=torch.float64), torch.zeros(3, 11200, dtype=torch.long)
    for index, length in enumerate(lengths):
        samples[index, :length] = torch.from_numpy(audio.make(length / 16000, seed=index)).double()
        mask[index, :length] = 1
    return samples, mask


@pytest.mark.parametrize("frozen", [0, 1, 3, 7])
def test_what_is_remembered_changes_no_result(speaking_model, rows, frozen, monkeypatch):
    model = speaking_model().double()
    settings = TTTSettings("entropy", max_entropy=1, steps=3, learning_rate=1e-3, frozen_layers=frozen)
    with_memory = TestTimeTrainer(model, settings).adapt_batch(*rows)
    monkeypatch.setattr("lact_asr.inference.ttt_procedure.layers_below", lambda *_: [])
    without = TestTimeTrainer(model, settings).adapt_batch(*rows)
    for one, other in zip(with_memory, without, strict=True):
        assert one.adapted
        assert one.losses == other.losses
        assert torch.equal(one.logits, other.logits)
        assert not torch.equal(one.logits, one.logits_before)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({"frozen_layers": 2}, 2),
        ({"frozen_layers": 0}, 0),
        ({}, 1),
        ({"parameters": ("front_end",)}, 0),
        ({"parameters": ("fast_weights",)}, 7),
        ({"parameters": (FEATURE_OFFSET,)}, 7),
        ({"parameters": (FEATURE_OFFSET,), "optimizer": "cma_es", "population": 6}, 7),
    ],
    ids=str,
)
def test_layers_below_what_adapts_run_once(speaking_model, rows, settings, frozen):
    model = speaking_model().double()
    counts = passes_of(model.front_end.conv_layers)
    TestTimeTrainer(model, TTTSettings("entropy", max_entropy=1, steps=2, learning_rate=1e-3, **settings)).adapt(
        rows[0][0]
    )
    assert counts[:frozen] == [1] * frozen
    assert all(count > 1 for count in counts[frozen:])


def test_transformers_models_remember_their_layers(transformers_model, family, rows):
    model = transformers_model(family).double()
    counts = passes_of(front_end_of(model).conv_layers)
    settings = TTTSettings(
        "entropy", max_entropy=1, steps=2, learning_rate=1e-3, parameters=("norms", "front_end"), frozen_layers=3
    )
    outcome = TestTimeTrainer(model, settings).adapt(rows[0][0])
    assert len(outcome.losses) == 2
    assert counts == [1, 1, 1, 3, 3, 3, 3]


def test_frozen_layers_stay_as_they_are(speaking_model):
    model = speaking_model()
    selected = select_parameters(model, ("norms", "front_end"))
    left = without_layers(selected, model, 2)
    gone = selected.keys() - left.keys()
    assert gone == {
        name for name in selected if name.startswith(("front_end.conv_layers.0.", "front_end.conv_layers.1."))
    }
    assert any(name.endswith("layer_norm.weight") for name in gone) or model.config.feat_extract_norm == "layer"
    assert layers_below(model, left.values()) == list(model.front_end.conv_layers[:2])


def test_another_question_is_answered_anew():
    layer = torch.nn.Linear(3, 3).requires_grad_(False)
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    with remembered([layer]):
        answers = [layer(question) for question in (first, second, second.clone(), first)]
        assert answers[1] is answers[2]
        assert torch.equal(answers[0], answers[3])
    assert torch.equal(answers[1], layer(second))


def test_answers_with_derivatives_are_not_remembered():
    layer = torch.nn.Linear(3, 3)
    question = torch.randn(2, 3)
    with remembered([layer]):
        assert layer(question) is not layer(question)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frozen_layers": 8}, "cannot freeze 8 layers of a front end that has 7"),
        ({"frozen_layers": 7, "parameters": ("front_end",)}, "lies in the 7 layers"),
    ],
)
def test_impossible_layers(speaking_model, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        TestTimeTrainer(speaking_model(), TTTSettings("entropy", **settings))


def test_a_negative_number_of_layers():
    with pytest.raises(InputError, match="0 or more layers"):
        TTTSettings("entropy", frozen_layers=-1)


def test_a_model_without_convolutions_has_no_such_layers():
    assert frozen_layers.layers_below(torch.nn.Linear(2, 2), ()) == []
    with pytest.raises(InputError, match="no convolutional front end"):
        without_layers({}, torch.nn.Linear(2, 2), 1)
