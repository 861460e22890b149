"""Every reason to leave an utterance as it was, triggered; those of whole adaptations are in test_ttt_procedure."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lact_asr.inference.ttt.safeguards import refusal_after, refusal_before, refusals_of_weights
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt.views import Guides
from lact_asr.inference.ttt_procedure import TestTimeTrainer

BLANK, DELIMITER = 0, 1
ENTROPY = TTTSettings("entropy")
TEXT = torch.tensor([2, 3, 4])


def spelling(*classes: int) -> Tensor:
    """Logits [T, 5] whose frames say these classes."""
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(classes), 5).float()


SPEECH = spelling(0, 2, 3, 1, 2, 4, 0)


def test_an_utterance_that_can_be_learned_from_is_not_refused():
    assert refusal_before(torch.randn(400), SPEECH, [ENTROPY], BLANK) == ""
    assert refusal_after(SPEECH, SPEECH, BLANK, TEXT) == ""


@pytest.mark.parametrize(
    ("samples", "logits", "settings", "reason"),
    [
        (torch.randn(400), SPEECH, TTTSettings("entropy", steps=0), "no steps were asked for"),
        (torch.randn(400), math.nan * SPEECH, ENTROPY, "the model's output is not finite"),
        (torch.full((400,), 9e-4), SPEECH, ENTROPY, "the recording is silent"),
        (torch.randn(400), SPEECH, TTTSettings(mask_length=4), "the utterance is too short to mask"),
        (torch.randn(400), spelling(0, 0), ENTROPY, "no frame is anything but blank"),
        (torch.randn(400), SPEECH / 4, ENTROPY, "the output is too uncertain to learn from"),
        (
            torch.randn(400),
            SPEECH / 4,
            TTTSettings("tent", max_entropy=0.6),
            "the output is too uncertain to learn from",
        ),
    ],
)
def test_before(samples, logits, settings, reason):
    assert refusal_before(samples, logits, [settings], BLANK) == reason


@pytest.mark.parametrize(
    ("adapted", "reason"),
    [
        (math.inf * SPEECH, "the adapted output is not finite"),
        (spelling(0, 0, 0), "the adapted output collapsed to blanks"),
        (spelling(0, 1, 0, 1), "the adapted output spells nothing"),
        (spelling(2, 0, 2, 0, 2, 0, 2, 3), "the adapted output repeats one token"),
    ],
)
def test_after(adapted, reason):
    assert refusal_after(SPEECH, adapted, BLANK, TEXT) == reason


@pytest.mark.parametrize(
    ("logits", "settings"),
    [
        (SPEECH / 4, TTTSettings("entropy", max_entropy=0.7)),  # 0.63 of log 5
        (SPEECH / 4, TTTSettings("entropy", max_entropy=1)),
        (SPEECH / 4, TTTSettings("tent")),
        (torch.where(SPEECH[:, :1] > 0, SPEECH / 9, SPEECH), ENTROPY),  # unsure of blanks, which do not count
    ],
)
def test_sure_enough_to_learn_from(logits, settings):
    assert refusal_before(torch.randn(400), logits, [settings], BLANK) == ""


def test_repetition_needs_five_tokens_and_must_be_new():
    repeated = spelling(2, 0, 2, 0, 2, 0, 2, 3)
    assert refusal_after(repeated, repeated, BLANK) == ""
    assert refusal_after(SPEECH, spelling(2, 0, 2, 0, 2, 0, 2), BLANK) == ""


def test_weights():
    source = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    moved = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([4.4]), "feature_offset": torch.tensor([9.0])}
    assert refusals_of_weights(moved, source, None, 1) == [""]
    assert refusals_of_weights(moved, source, 0.11, 1) == [""]  # 0.5 / 5 is 0.1
    assert refusals_of_weights(moved, source, 0.09, 1) == ["the weights moved too far"]
    assert refusals_of_weights({**moved, "a": moved["a"] / 0}, source, None, 1) == [
        "the adapted weights are not finite"
    ]


def test_weights_of_rows_are_judged_each_by_itself():
    source = {"a": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}
    weights = {"a": torch.stack([source["a"], 1.2 * source["a"], source["a"] / 0])}
    assert refusals_of_weights(weights, source, 0.1, 3) == [
        "",
        "the weights moved too far",
        "the adapted weights are not finite",
    ]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_change": 1e-6}, "the weights moved too far"),
        ({"optimizer": "sgd", "learning_rate": 1e30}, "the adapted output is not finite"),
    ],
)
def test_a_refused_adaptation_keeps_the_unadapted_output(speaking_model, audio, settings, reason):
    samples = torch.from_numpy(audio.make(0.2))
    trainer = TestTimeTrainer(
        speaking_model(num_hidden_layers=1),
        TTTSettings("tent", **settings),
        guides=Guides(text_ids=torch.arange(5, 32)),
    )
    outcome = trainer.adapt(samples / samples.std())
    assert outcome.reason == reason
    assert outcome.logits is outcome.logits_before
    assert len(outcome.losses) == 1
