"""What is carried from utterance to utterance: how far, for whom, when it is forgotten, and never in the model itself."""

from __future__ import annotations

import copy
import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from lact_asr.inference.ttt.optimizers import InnerOptimizer
from lact_asr.inference.ttt.outcome import AdaptedState
from lact_asr.inference.ttt.recipes import Recipe
from lact_asr.inference.ttt.resets import LossShift, LossShiftDetector, LowEntropy, LowEntropyDetector
from lact_asr.inference.ttt.scopes import CarriedTrainer
from lact_asr.inference.ttt.search import SearchDistribution
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt_procedure import TestTimeTrainer
from lact_asr.ttt_names import FEATURE_OFFSET

SETTINGS = TTTSettings("tent", learning_rate=1e-3)


@pytest.fixture
def model(speaking_model):
    return speaking_model(num_hidden_layers=1).double()


@pytest.fixture
def waveform(audio):
    def make(number: int = 0, seconds: float = 0.2) -> Tensor:
        samples = torch.from_numpy(audio.make(seconds, seed=number)).double()
        return (samples - samples.mean()) / samples.std()

    return make


def carried(model, settings: TTTSettings = SETTINGS, **values) -> CarriedTrainer:
    return CarriedTrainer(model, Recipe((settings,), **{"scope": "stream", **values}))


def test_a_stream_goes_on_from_where_it_was_with_the_optimisers_moments(model, waveform):
    """One recording twice, a step each, is one adaptation of two steps."""
    weights, trainer = copy.deepcopy(model.state_dict()), carried(model)
    outcomes = [trainer.adapt(waveform()) for _ in range(2)]
    once = TestTimeTrainer(model, TTTSettings("tent", learning_rate=1e-3, steps=2)).adapt(waveform())
    torch.testing.assert_close(outcomes[1].logits, once.logits)
    assert outcomes[0].losses + outcomes[1].losses == pytest.approx(once.losses)
    assert torch.equal(outcomes[1].logits_before, outcomes[0].logits_before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    trainer.reset()
    torch.testing.assert_close(trainer.adapt(waveform()).logits, outcomes[0].logits)


def test_speakers_do_not_hear_each_other(model, waveform):
    trainer = carried(model, scope="speaker")
    first, _, second = (trainer.adapt(waveform(n), s) for n, s in ((0, "ann"), (5, "bob"), (1, "ann")))
    alone = carried(model)
    assert torch.equal(alone.adapt(waveform(0)).logits, first.logits)
    assert torch.equal(alone.adapt(waveform(1)).logits, second.logits)
    unknown = [trainer.adapt(waveform(2)) for _ in range(2)]
    assert torch.equal(unknown[0].logits, unknown[1].logits)


def test_batches_are_one_after_the_other(model, waveform):
    rows = [waveform(0, 0.2), waveform(1, 0.25)]
    values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0)
    mask = torch.arange(len(rows[1])) < torch.tensor([len(row) for row in rows])[:, None]
    together, alone = carried(model).adapt_batch(values, mask.long()), carried(model)
    for outcome, row in zip(together, rows, strict=True):
        assert torch.equal(outcome.logits, alone.adapt(row).logits)


@pytest.mark.parametrize(
    ("decay", "momentum", "left"), [(1.0, 0.0, 1.0), (0.5, 0.0, 0.5), (1.0, 0.75, 0.25), (0.5, 0.75, 0.125)]
)
def test_decay_and_average_by_hand(model, waveform, decay, momentum, left):
    """The source is the average's start as well, so that after one utterance both shrink what was learned."""
    trainer = carried(model, decay=decay, momentum=momentum)
    outcome = trainer.adapt(waveform())
    for name, value in trainer._carried[None].state.weights.items():
        source = model.get_parameter(name)
        torch.testing.assert_close(value, source + left * (outcome.state.weights[name] - source))


def test_the_model_is_untouched_after_an_exception(model, waveform, monkeypatch):
    weights, trainer = copy.deepcopy(model.state_dict()), carried(model)
    first = trainer.adapt(waveform())
    monkeypatch.setattr(InnerOptimizer, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.adapt(waveform(1))
    monkeypatch.undo()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    trainer.reset()
    torch.testing.assert_close(trainer.adapt(waveform()).logits, first.logits)


def test_what_breaks_is_forgotten_and_what_teaches_nothing_is_passed_over(model, waveform):
    trainer = carried(model)
    trainer.adapt(waveform())
    state = trainer._carried[None].state
    silent = trainer.adapt(torch.zeros(3200, dtype=torch.float64))
    assert silent.reason == "the recording is silent"
    assert trainer._carried[None].state is state
    state.weights["final_norm.weight"] = torch.full_like(state.weights["final_norm.weight"], math.nan)
    broken = trainer.adapt(waveform())
    assert not broken.adapted
    assert broken.logits is broken.logits_before
    assert (trainer.resets, trainer._carried) == (1, {})
    assert trainer.adapt(waveform()).adapted


# DSUTA


def test_slow_steps_are_on_the_mean_loss_of_a_buffer(model, waveform):
    """Fast steps are thrown away: only every second utterance moves where the next ones start."""
    trainer = carried(model, TTTSettings("tent", learning_rate=1e-3, steps=3), buffer=2)
    trainer.adapt(waveform(0))
    assert trainer._carried[None].state.weights == {}
    trainer.adapt(waveform(1))
    by_hand, found = copy.deepcopy(model), trainer._carried[None].state.weights
    total = 0.0
    for number in range(2):
        p = by_hand(waveform(number)[None]).logits[0].float().softmax(-1)
        total = total - (p * p.log()).sum(-1).mean() / 2
    parameters = {name: by_hand.get_parameter(name) for name in found}
    for name, gradient in zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True):
        expected = parameters[name] - 1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


def test_a_shift_is_a_mean_gain_too_far_above_what_was_usual():
    rule = LossShift(deviations=2.0, patience=2, window=6)
    usual = [-1.0, -1.2, -0.8]
    detector = LossShiftDetector(rule, gains=list(usual))
    edge = statistics.mean(usual) + 2 * statistics.stdev(usual) / math.sqrt(4)
    assert not detector.observe([edge + 1e-6] * 4)  # the first failure
    assert not detector.observe([edge - 1e-6] * 4)  # patience starts again
    assert not detector.observe([edge + 1e-6] * 4)
    assert detector.observe([edge + 1e-6] * 4)


def test_a_change_of_domain_resets_the_slow_weights(model, waveform, monkeypatch):
    trainer = carried(model, buffer=2, reset=LossShift(deviations=2.0, patience=1, window=6))

    def losses(utterances: list[Tensor], state: AdaptedState) -> list[float]:
        """With memory utterances gain about 1, until the ninth."""
        heard = trainer._carried[None].detector.utterances
        gain = 1.0 - 0.1 * (heard % 2) if heard < 8 else 0.0
        return [-gain * bool(state.weights) for _ in utterances]

    monkeypatch.setattr(trainer.trainer, "losses", losses)
    resets = []
    for number in range(10):
        trainer.adapt(waveform(number % 3))
        resets.append(trainer.resets)
    assert resets == [0] * 9 + [1]
    assert trainer._carried == {}


# SAR


def test_low_entropy_follows_a_moving_average():
    detector = LowEntropyDetector(LowEntropy(threshold=0.3, momentum=0.9))
    assert not detector.observe(0.5)
    assert detector.average == 0.5
    assert not detector.observe(0.1)
    assert detector.average == pytest.approx(0.46)
    assert [detector.observe(0.0) for _ in range(5)] == [False, False, False, False, True]


def test_entropy_below_the_threshold_resets(model, waveform):
    trainer = carried(model, reset=LowEntropy(threshold=100.0))
    first = trainer.adapt(waveform())
    assert (trainer.resets, trainer._carried) == (1, {})
    assert torch.equal(trainer.adapt(waveform()).logits, first.logits)


def test_utterances_that_are_filtered_are_decoded_with_what_was_carried(model, waveform):
    trainer = carried(model, TTTSettings("spoken_entropy", learning_rate=1e-3, entropy_margin=1.0))
    trainer.adapt(waveform(0))
    state = trainer._carried[None].state
    trainer.trainer.stages[0].settings = TTTSettings("spoken_entropy", entropy_margin=1e-6)
    outcome = trainer.adapt(waveform(1))
    assert (outcome.steps, outcome.adapted) == (0, True)
    assert torch.equal(outcome.logits, trainer.trainer.logits(waveform(1), state))
    assert trainer._carried[None].state is state


# E-BATS


def test_the_search_starts_from_a_moving_average_of_distributions():
    carried_on = SearchDistribution(np.zeros(2), 1.0)
    found = SearchDistribution(np.array([1.0, 2.0]), 3.0, np.array([[2.0, 1.0], [1.0, 4.0]]))
    average = carried_on.averaged_with(found, 0.75)
    assert average.mean.tolist() == [0.25, 0.5]
    assert average.deviation == 1.5
    assert average.covariance.tolist() == [[1.25, 0.25], [0.25, 1.75]]


def test_a_search_goes_on_from_the_average(model, waveform):
    settings = TTTSettings(
        "tent", parameters=(FEATURE_OFFSET,), optimizer="cma_es", learning_rate=0.1, steps=2, population=4
    )
    trainer = carried(model, settings, momentum=0.9)
    outcome = trainer.adapt(waveform())
    (average,), (ended,) = trainer._carried[None].state.optimizers, outcome.state.optimizers
    np.testing.assert_allclose(average.mean, 0.1 * ended.mean)
    assert average.deviation == pytest.approx(0.9 * 0.1 + 0.1 * ended.deviation)
    assert not torch.equal(trainer.adapt(waveform()).logits, outcome.logits)


# AWMC


def test_the_chaser_learns_the_transcripts_of_anchor_and_leader(model, waveform):
    settings = TTTSettings("pseudo_labels", parameters=("norms", "biases"), learning_rate=1e-2)
    trainer = carried(model, settings, leader_momentum=0.9)
    rows, by_hand = [waveform(0), waveform(1)], copy.deepcopy(model)
    names = trainer.trainer.parameters
    chaser = {name: by_hand.get_parameter(name) for name in names}
    source = {name: value.detach().clone() for name, value in chaser.items()}
    leader = dict(source)
    optimizer = InnerOptimizer("adamw", chaser, 1e-2)

    def transcript(weights: dict[str, Tensor], row: Tensor) -> list[int]:
        with torch.no_grad():
            best = torch.func.functional_call(by_hand, weights, (row[None],)).logits[0].argmax(-1).tolist()
        return [now for before, now in zip([0, *best], best, strict=False) if now not in (before, 0)]

    for row in rows:
        logits = by_hand(row[None]).logits[0].float().log_softmax(-1)
        targets = [torch.tensor(transcript(weights, row)) for weights in (source, leader)]
        losses = [
            torch.nn.functional.ctc_loss(logits[:, None], labels[None], (len(logits),), (len(labels),), reduction="sum")
            for labels in targets
        ]
        gradients = torch.autograd.grad(sum(losses) / 2, list(chaser.values()), allow_unused=True)
        known = {name: gradient for name, gradient in zip(chaser, gradients, strict=True) if gradient is not None}
        with torch.no_grad():
            for name, value in optimizer.step(chaser, known).items():
                chaser[name].copy_(value)
            leader = {name: 0.9 * leader[name] + 0.1 * chaser[name] for name in chaser}
            outcome = trainer.adapt(row)
            torch.testing.assert_close(outcome.logits, by_hand(row[None]).logits[0], rtol=1e-3, atol=1e-3)
    for name, value in trainer._carried[None].leader.items():
        torch.testing.assert_close(value, leader[name], rtol=1e-4, atol=1e-4)
