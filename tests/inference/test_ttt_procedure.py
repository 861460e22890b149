"""Test-time training: what it computes, that nothing of it outlives the utterance, and every reason to refuse."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lact_asr.errors import InputError
from lact_asr.fast_weight_ops import newton_schulz
from lact_asr.inference.ttt.losses import OBJECTIVES
from lact_asr.inference.ttt.objectives import suta_objective
from lact_asr.inference.ttt.outcome import AdaptedState, TTTOutcome
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt.views import Rows
from lact_asr.inference.ttt_procedure import TestTimeTrainer
from lact_asr.lact_layer import LaCTLayer
from lact_asr.masking import span_mask
from lact_asr.ttt_names import OPTIMIZERS
from lact_asr.ttt_parameters import FEATURE_OFFSET, PARAMETER_GROUPS

LOSS_TYPES = ("masked_prediction", "entropy")  # one with masks and one without
BOTH_LOSSES = pytest.mark.parametrize("loss_type", LOSS_TYPES)
ALONE = [name for name, objective in OBJECTIVES.items() if not objective.statistics]  # need the model alone
ALL_LOSSES = pytest.mark.parametrize("loss_type", [*ALONE, "masked_prediction+0.3*entropy+consistency"])


@pytest.fixture
def model(speaking_model):
    return speaking_model()


@pytest.fixture
def waveform(audio):
    """Normalised recordings [samples], told apart by a number."""

    def make(number: int = 0, seconds: float = 0.7) -> Tensor:
        samples = torch.from_numpy(audio.make(seconds, seed=number))
        return (samples - samples.mean()) / samples.std()

    return make


def trainer(model: nn.Module, loss_type: str = "entropy", **settings) -> TestTimeTrainer:
    """With the full gradient, and for random models, which are sure of nothing; unless the settings say otherwise."""
    values = {"loss_type": loss_type, "learning_rate": 1e-3, "mask_length": 3, "mask_prob": 0.3}
    values |= {"constant_updates": False, "frozen_layers": 0, "max_entropy": 1}
    return TestTimeTrainer(model, TTTSettings(**{**values, **settings}))


@torch.no_grad()
def plain_logits(model: nn.Module, row: Tensor) -> Tensor:
    return model(row[None]).logits[0]


# Nothing outlives the utterance


@ALL_LOSSES
@pytest.mark.parametrize("groups", [None, (*PARAMETER_GROUPS, FEATURE_OFFSET)])
def test_nothing_outlives_the_utterance(model, waveform, loss_type, groups):
    model.train()
    model.front_end.eval()
    model.feature_projection.weight.grad = gradient = torch.ones_like(model.feature_projection.weight)
    model.ctc_head.requires_grad_(False)
    weights = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()

    outcome = trainer(model, loss_type, steps=2, parameters=groups).adapt(waveform())

    assert outcome.adapted
    assert not torch.equal(outcome.logits, outcome.logits_before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert [parameter.grad is None for parameter in model.parameters()].count(False) == 1
    assert model.feature_projection.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not outcome.logits.requires_grad
    assert not outcome.logits_before.requires_grad


@BOTH_LOSSES
def test_an_utterance_does_not_depend_on_those_before(model, waveform, loss_type):
    adapter = trainer(model, loss_type, steps=2)
    alone = adapter.adapt(waveform(1))
    for number in (2, 3):
        adapter.adapt(waveform(number))
        torch.rand(5)  # masks have their own source of randomness
    again = adapter.adapt(waveform(1))
    assert torch.equal(again.logits, alone.logits)
    assert again.losses == alone.losses


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows with 7 as padding, and their mask."""
    values = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0)
    mask = torch.arange(values.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return values, mask.long()


def assert_as_alone(adapter: TestTimeTrainer, outcomes: list[TTTOutcome], rows: list[Tensor]) -> None:
    """In float64, so that a batch and its rows differ by rounding far below what adaptation does."""
    for row, outcome in zip(rows, outcomes, strict=True):
        alone = adapter.adapt(row)
        assert (alone.logits - alone.logits_before).abs().max() > 1e-4
        torch.testing.assert_close(outcome.logits, alone.logits, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(outcome.logits_before, alone.logits_before, atol=1e-8, rtol=1e-8)
        assert outcome.losses == pytest.approx(alone.losses, rel=1e-5)


@ALL_LOSSES
def test_rows_and_padding_change_nothing(model, waveform, loss_type):
    model = model.double()
    rows = [waveform(0, 0.7).double(), waveform(1, 0.5).double(), waveform(2, 0.9).double()]
    adapter = trainer(model, loss_type, steps=2)
    values, mask = padded(rows)
    assert_as_alone(adapter, adapter.adapt_batch(values, mask), rows)
    whole = adapter.adapt_batch(values)  # without a mask the padding is audio
    assert len({len(outcome.logits) for outcome in whole}) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("groups", [("fast_weights", "output"), (FEATURE_OFFSET,), ("front_end",)], ids=str)
def test_rows_do_not_see_each_other_whatever_optimizer_and_parameters(model, waveform, optimizer, groups):
    model, rows = model.double(), [row.double() for row in (waveform(0), waveform(1), 3 * waveform(2))]
    adapter = trainer(model, "entropy+tent", optimizer=optimizer, parameters=groups, steps=2)
    assert_as_alone(adapter, adapter.adapt_batch(torch.stack(rows)), rows)


def test_steps_with_constant_updates(model, waveform):
    model, rows = model.double(), [waveform(0, 0.7).double(), waveform(1, 0.5).double()]
    adapter = trainer(model, "entropy", constant_updates=True, steps=2)
    outcomes = adapter.adapt_batch(*padded(rows))
    assert_as_alone(adapter, outcomes, rows)
    assert not any(module.constant_updates for module in model.modules() if isinstance(module, LaCTLayer))
    for row, outcome in zip(rows, outcomes, strict=True):
        full = trainer(model, "entropy", steps=2).adapt(row)
        assert outcome.losses[0] == pytest.approx(full.losses[0], rel=1e-12)
        assert (outcome.logits - full.logits).abs().max() > 1e-4


def test_a_row_that_fails_does_not_touch_the_others(model, waveform):
    model, rows = model.double(), [waveform(0).double(), waveform(1).double()]
    broken = torch.full_like(rows[0], math.nan)
    adapter = trainer(model, "entropy", steps=2)
    first, failed, last = adapter.adapt_batch(torch.stack([rows[0], broken, rows[1]]))
    assert_refused(failed, "the model's output is not finite")
    assert_as_alone(adapter, [first, last], rows)


def test_16_bit_autocast_of_the_caller_sees_the_adapted_weights(model, waveform):
    """Its cache would keep the weights' 16-bit copies from before the step."""
    row = waveform(2)  # one whose gradients 16 bits change little: among a dozen the change below is 0.14 to 0.51 off
    adapter = trainer(model, parameters=("output",), learning_rate=1e-2, steps=2)
    adapted = copy.deepcopy(model).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = adapter.adapt(row, start=AdaptedState())
        for name, weight in outcome.state.weights.items():
            adapted.get_parameter(name).data.copy_(weight.view_as(adapted.get_parameter(name)))
        with torch.no_grad():
            by_hand = adapted(row[None]).logits[0]
    assert (outcome.logits - by_hand).float().norm() < 0.01 * (outcome.logits - outcome.logits_before).float().norm()
    assert outcome.losses[1] != outcome.losses[0]
    expected = adapter.adapt(row)
    change, wanted = outcome.logits - outcome.logits_before, expected.logits - expected.logits_before
    assert (change.float() - wanted).norm() < 0.3 * wanted.norm()


def test_a_loss_that_nothing_adaptable_has_a_part_in(model, waveform):
    with pytest.raises(InputError, match=r"masked_prediction does not depend on what adapts \(output\)"):
        trainer(model, "masked_prediction", parameters=("output",)).adapt(waveform())


def test_sgd_on_the_feature_offset_by_hand(model, waveform):
    model, row = model.double(), waveform().double()
    outcome = trainer(model, parameters=(FEATURE_OFFSET,), optimizer="sgd", learning_rate=0.5).adapt(row)
    model.eval()
    features, _ = model.front_end(row[None])
    offset = torch.zeros(features.shape[-1], dtype=torch.float64, requires_grad=True)

    def logits() -> Tensor:
        hidden = model.feature_projection(model.feature_norm(features + offset))
        frame_mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
        return model.ctc_head(model._run_blocks(hidden, frame_mask)[0])[0]

    (gradient,) = torch.autograd.grad(suta_objective(logits(), 0), offset)
    offset.data -= 0.5 * gradient
    torch.testing.assert_close(outcome.logits, logits().detach(), rtol=1e-6, atol=1e-8)


def test_muon_steps_on_matrices_by_hand(model, waveform):
    model, row = model.double(), waveform().double()
    outcome = trainer(model, parameters=("output",), optimizer="muon", learning_rate=1e-2).adapt(row)
    model.eval()
    weight, bias = model.ctc_head.weight, model.ctc_head.bias
    gradients = torch.autograd.grad(suta_objective(model(row[None]).logits[0], 0), (weight, bias))
    with torch.no_grad():
        # A first step of momentum and look-ahead only scales the gradient; AdamW's first step is its sign.
        weight -= 1e-2 * 0.2 * max(weight.shape) ** 0.5 * newton_schulz(gradients[0])
        bias -= 1e-2 * gradients[1] / (gradients[1].abs() + 1e-8)
    torch.testing.assert_close(outcome.logits, plain_logits(model, row), rtol=1e-5, atol=1e-6)


def test_callers_without_gradients(model, waveform):
    """Adaptation differentiates inside; nobody has to know."""
    expected = trainer(model).adapt(waveform()).logits
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(trainer(model).adapt(waveform()).logits, expected)


# What it computes


@BOTH_LOSSES
def test_no_steps_change_nothing(model, waveform, loss_type):
    outcome = trainer(model, loss_type, steps=0).adapt(waveform())
    assert torch.equal(outcome.logits, plain_logits(model, waveform()))
    assert (outcome.losses, outcome.adapted) == ([], False)
    assert "no steps" in outcome.reason


@BOTH_LOSSES
def test_logits_before_are_the_models_own(model, waveform, loss_type):
    outcome = trainer(model, loss_type).adapt(waveform())
    assert torch.equal(outcome.logits_before, plain_logits(model, waveform()))


@BOTH_LOSSES
def test_the_learning_rate_decides_how_far_it_goes(model, waveform, loss_type):
    def change(learning_rate: float) -> float:
        outcome = trainer(model, loss_type, learning_rate=learning_rate).adapt(waveform())
        return (outcome.logits - outcome.logits_before).abs().max().item()

    tiny, small, large = change(1e-9), change(1e-5), change(1e-2)
    assert tiny < 1e-2 < 10 * tiny + 1e-2 < small * 10
    assert small < large


def test_entropy_falls_from_step_to_step(model, waveform):
    for number in range(3):
        losses = trainer(model, steps=8, learning_rate=3e-5).adapt(waveform(number)).losses
        assert len(losses) == 8
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0] - 1e-3


def test_masked_prediction_falls_on_the_same_masks(model, waveform):
    """Each step draws new masks, so the comparison is with a run on the same masks that hardly learns."""
    for number in range(2):
        learnt, not_learnt = (
            trainer(model, "masked_prediction", steps=10, learning_rate=rate).adapt(waveform(number)).losses
            for rate in (3e-4, 1e-12)
        )
        assert learnt[0] == not_learnt[0]
        assert sum(learnt[1:]) < sum(not_learnt[1:])
        assert len(set(not_learnt)) > 6, "all steps drew the same masks"


def adapt_by_hand(
    model: nn.Module, parameters: dict[str, nn.Parameter], losses: list[Callable[[], Tensor]]
) -> list[float]:
    """AdamW (arXiv 1711.05101, Algorithm 2) without decay, at 1e-3, a step for each loss; the losses' values."""
    first = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    second = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    values = []
    for step, loss in enumerate(losses, 1):
        value = loss()
        values.append(value.item())
        gradients = torch.autograd.grad(value, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                direction = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
                parameter -= 1e-3 * direction
    return values


def norms_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{part}": parameter
        for name, module in model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        for part, parameter in module.named_parameters()
    }


def test_entropy_steps_by_hand(model, waveform):
    """In float64, because a first step is nearly the sign of the gradient, and rounding can turn tiny ones."""
    model, row = model.double(), waveform().double()
    outcome = trainer(model, parameters=("norms",), steps=3).adapt(row)
    by_hand = copy.deepcopy(model)

    def loss() -> Tensor:
        return suta_objective(by_hand(row[None]).logits[0], blank_id=0)

    assert outcome.losses == pytest.approx(adapt_by_hand(by_hand, norms_of(by_hand), [loss] * 3), rel=1e-5)
    torch.testing.assert_close(outcome.logits, plain_logits(by_hand, row), rtol=1e-4, atol=1e-4)


def test_masked_prediction_steps_by_hand(model, waveform):
    """The masks are those of the settings' seed; the teacher is the unmasked, unadapted pass in every step."""
    model, row = model.double(), waveform().double()
    outcome = trainer(model, "masked_prediction", parameters=("output", "norms"), seed=5, steps=2).adapt(row)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        teacher = by_hand(row[None], output_hidden_states=True).hidden_states[-1]
    frames = teacher.shape[1]
    generator = torch.Generator().manual_seed(5)

    def loss() -> Tensor:
        mask = span_mask(torch.tensor([frames]), frames, 0.3, 3, generator)
        assert 0 < mask.sum() < frames / 2
        student = by_hand(row[None], masked_frames=mask, output_hidden_states=True).hidden_states[-1]
        predicted = by_hand.masked_prediction.predictor(student[mask]).float()
        target = nn.functional.layer_norm(teacher[mask].float(), teacher.shape[-1:])
        return (predicted - target).square().mean()

    assert outcome.losses == pytest.approx(adapt_by_hand(by_hand, norms_of(by_hand), [loss] * 2), rel=1e-5)
    torch.testing.assert_close(outcome.logits, plain_logits(by_hand, row), rtol=1e-4, atol=1e-4)


# In pieces


def gradients_and_loss(adapter: TestTimeTrainer, row: Tensor) -> tuple[float, dict[str, Tensor]]:
    """One backward pass as `adapt` runs it, with the gradients kept."""
    (stage,) = adapter.stages
    with adapter.lent_copies(rows=1) as copies:
        with torch.no_grad():
            before = adapter.model(row[None], output_hidden_states=True)
        rows = Rows(row[None], None, [before.logits.shape[1]], before.hidden_states[-1])
        (loss,), gradients = stage.differentiate(rows, copies, stage.generators(1), [0])
    return loss, gradients


@BOTH_LOSSES
@pytest.mark.parametrize("chunk_size", [34, 1000])
def test_one_piece_is_the_whole(model, waveform, loss_type, chunk_size):
    row = waveform(0)
    assert len(plain_logits(model, row)) == 34
    whole, gradients = gradients_and_loss(trainer(model, loss_type), row)
    loss, again = gradients_and_loss(trainer(model, loss_type, chunk_size=chunk_size), row)
    assert loss == whole
    assert gradients.keys() == again.keys()
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)


@BOTH_LOSSES
@pytest.mark.parametrize("factor", [5, 8])
@pytest.mark.parametrize("chunk_size", [5, 10, 16])
def test_pieces_cover_all_frames_and_give_as_many(speaking_model, waveform, loss_type, factor, chunk_size):
    model = speaking_model(encoder_target_ds_factor=factor)
    adapter = trainer(model, loss_type, chunk_size=chunk_size)
    row = waveform()[None]
    total = len(plain_logits(model, row[0]))
    pieces = adapter.stages[0].pieces(row, total)
    assert len(pieces) > 1
    assert pieces[0][0].start == 0
    assert pieces[-1][0].stop == total
    assert all(left[0].stop == right[0].start for left, right in itertools.pairwise(pieces))
    for frames, samples in pieces:
        assert model(row[:, samples]).logits.shape[1] == frames.stop - frames.start
        assert frames.stop - frames.start > 3, "too short to mask"


def test_the_loss_of_pieces_is_their_mean_weighted_by_frames(model, waveform):
    row = waveform()
    loss, gradients = gradients_and_loss(trainer(model, chunk_size=12), row)
    expected = 0.0
    for start, end in ((0, 12), (12, 24), (24, 34)):
        piece = row[None, 320 * start : 320 * (end - 1) + 400]
        expected = expected + suta_objective(model(piece).logits[0], 0) * (end - start) / 34
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    model.zero_grad()
    expected.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


@BOTH_LOSSES
def test_adapting_in_pieces(model, waveform, loss_type):
    whole = trainer(model, loss_type).adapt(waveform())
    pieces = trainer(model, loss_type, chunk_size=12).adapt(waveform())
    assert pieces.adapted
    assert pieces.logits.shape == whole.logits.shape
    assert not torch.equal(pieces.logits, whole.logits)


def test_pieces_of_very_short_audio(model, waveform):
    """Fewer frames than a mask has: still one piece, and entropy needs no masks."""
    outcome = trainer(model, chunk_size=2, mask_length=10).adapt(waveform(0, seconds=0.15))
    assert len(outcome.logits) == 7
    assert outcome.adapted


# Transformers' models


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_transformers_models(waveform, transformers_model, family, norm):
    model = transformers_model(family, feat_extract_norm=norm, num_hidden_layers=2, pad_token_id=3).train()
    weights = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    adapter = trainer(model, steps=4, learning_rate=1e-3)
    assert adapter.blank_id == 3
    outcome = adapter.adapt(waveform())
    assert outcome.adapted, outcome.reason
    assert not torch.equal(outcome.logits, outcome.logits_before)
    assert outcome.losses[-1] < outcome.losses[0]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    rows = [waveform(0, 0.7), waveform(1, 0.5)]
    for found, row in zip(adapter.adapt_batch(*padded(rows)), rows, strict=True):
        assert torch.equal(found.logits, adapter.adapt(row).logits)
    in_pieces = trainer(model, chunk_size=10).adapt(waveform())
    assert in_pieces.logits.shape == outcome.logits.shape


def test_models_that_hear_spectrograms(transformers_model):
    """Wav2Vec2-BERT takes [frames, features], has no convolutions to adapt and cannot be cut into samples."""
    model = transformers_model("wav2vec2-bert", pad_token_id=3)
    weights = copy.deepcopy(model.state_dict())
    rows = [torch.randn(frames, 160) for frames in (30, 20)]
    adapter = trainer(model, steps=2)
    assert adapter.stages[0].adaptation.groups == ("norms",)
    outcomes = [adapter.adapt(row) for row in rows]
    for row, outcome in zip(rows, outcomes, strict=True):
        assert outcome.adapted, outcome.reason
        assert outcome.logits.shape == (len(row), 8)
    for found, expected in zip(adapter.adapt_batch(*padded(rows)), outcomes, strict=True):
        torch.testing.assert_close(found.logits, expected.logits)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="does not hear samples"):
        trainer(model, chunk_size=10)
    with pytest.raises(InputError, match="no convolutional front end"):
        trainer(model, parameters=(FEATURE_OFFSET,))


def test_sgd_has_no_rate_of_its_own(model):
    with pytest.raises(InputError, match="sgd needs a learning rate"):
        trainer(model, optimizer="sgd", learning_rate=None)


def test_masked_prediction_needs_its_head(speaking_model, transformers_model):
    for model in (
        speaking_model(enable_ttt=False),
        transformers_model("wav2vec2"),
    ):
        with pytest.raises(InputError, match=r"no masked-prediction head.*--ttt_loss_type entropy"):
            TestTimeTrainer(model, TTTSettings())


def test_models_without_the_head_take_entropy_by_default(speaking_model, transformers_model):
    masked = speaking_model(enable_ttt=False, ttt_optimizer="sgd", ttt_parameters="output", ttt_learning_rate=0.5)
    for model in (masked, transformers_model("wav2vec2")):
        (settings,) = TestTimeTrainer(model).settings
        found = (settings.loss_type, settings.optimizer, settings.parameters, settings.learning_rate)
        assert found == ("entropy", "adamw", None, None)
    for trained_for in ("tent", "masked_prediction+tent"):
        model = speaking_model(enable_ttt="+" in trained_for, ttt_loss_type=trained_for)
        assert TestTimeTrainer(model).settings[0].loss_type == trained_for


def test_a_blank_that_is_given_counts(model, waveform):
    adapter = TestTimeTrainer(model, TTTSettings(loss_type="entropy"), blank_id=31)
    assert adapter.blank_id == 31
    assert adapter.adapt(waveform()).losses != trainer(model).adapt(waveform()).losses


# Reasons to refuse


def assert_refused(outcome: TTTOutcome, reason: str) -> None:
    assert not outcome.adapted
    assert reason in outcome.reason
    assert outcome.logits is outcome.logits_before


def test_output_that_is_not_finite(model, waveform):
    with torch.no_grad():
        model.ctc_head.bias[5] = math.nan
    assert_refused(trainer(model).adapt(waveform()), "the model's output is not finite")


@BOTH_LOSSES
def test_a_learning_rate_that_destroys_the_model(model, waveform, loss_type):
    weights = copy.deepcopy(model.state_dict())
    outcome = trainer(model, loss_type, learning_rate=1e30).adapt(waveform())
    assert_refused(outcome, "the adapted output is not finite")
    outcome = trainer(model, loss_type, learning_rate=1e30, steps=2).adapt(waveform())
    assert_refused(outcome, "the self-supervised loss or its gradient is not finite")
    assert not math.isfinite(outcome.losses[-1])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert trainer(model, loss_type).adapt(waveform()).adapted


def test_collapse_to_blanks(model, waveform):
    """One frame is a letter, by a hair: in about half of the recordings a step makes it a blank too."""
    outcomes = []
    for number in range(8):
        logits = plain_logits(model, waveform(number))
        lead = (logits[:, 1:].max(-1).values - logits[:, 0]).max()
        bias = model.ctc_head.bias.detach().clone()
        with torch.no_grad():
            model.ctc_head.bias[0] += lead - 0.01
        outcomes.append(trainer(model, "masked_prediction", learning_rate=1e-4).adapt(waveform(number)))
        assert (outcomes[-1].logits_before.argmax(-1) != 0).sum() in (1, 2)
        with torch.no_grad():
            model.ctc_head.bias.copy_(bias)
    collapsed = [outcome for outcome in outcomes if not outcome.adapted]
    assert 0 < len(collapsed) < len(outcomes)
    for outcome in collapsed:
        assert_refused(outcome, "the adapted output collapsed to blanks")
        assert len(outcome.losses) == 1


def test_silent_output(model, waveform):
    with torch.no_grad():
        model.ctc_head.bias[0] = 1e3
    for loss_type in LOSS_TYPES:
        assert_refused(trainer(model, loss_type).adapt(waveform()), "no frame is anything but blank")


def test_too_short_to_mask(model, waveform):
    short = waveform(0, seconds=0.13)  # 6 frames, twice a span
    assert len(plain_logits(model, short)) == 6
    assert_refused(trainer(model, "masked_prediction").adapt(short), "too short to mask")
    assert trainer(model, "masked_prediction").adapt(waveform(0, seconds=0.15)).adapted
    assert trainer(model, "entropy").adapt(short).adapted


# Impossible settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "magic"}, "'magic'; choose masked_prediction, entropy, .*or a sum of them"),
        ({"loss_type": "entropy+"}, "''; choose"),
        ({"loss_type": "-1*entropy"}, "The weight '-1' of the TTT loss entropy is not a number above 0"),
        ({"loss_type": "x*tent"}, "The weight 'x'"),
        ({"optimizer": "lion"}, "'lion'; choose adamw, sgd, muon, cma_es"),
        ({"optimizer": "cma_es"}, "searches for a feature_offset and nothing else"),
        ({"final_learning_rate": 1e-3}, "needs a learning rate to start from"),
        ({"sharpness": -1.0}, "must be 0 or more, not -1.0"),
        ({"sharpness": 0.1}, "which draws masks, do not go together"),
        ({"entropy_margin": 0.0}, "entropy_margin must be above 0"),
        ({"max_change": -1.0}, "max_change must be above 0"),
        ({"beam_size": 0}, "beam_size must be 1 or more"),
        ({"loss_type": "alignment", "chunk_size": 20}, "looks at the whole utterance"),
        ({"loss_type": "alignment", "control": "shuffled_targets"}, "no targets to shuffle"),
        ({"steps": -1}, "0 or more steps, not -1"),
        ({"learning_rate": 0.0}, "above 0 and at most 1e+30, not 0.0"),
        ({"learning_rate": -1e-3}, "above 0"),
        ({"learning_rate": math.nan}, "above 0.*not nan"),
        ({"learning_rate": 1e38}, "at most 1e+30, not 1e+38"),
        ({"chunk_size": 0}, "1 or more frames, or -1 for all, not 0"),
        ({"chunk_size": -2}, "not -2"),
        ({"chunk_size": 10}, "chunks of 10 frames have no room for masks of 10"),
        ({"mask_prob": 0.0}, "between 0 and 1, not 0.0"),
        ({"mask_prob": 1.0}, "between 0 and 1, not 1.0"),
        ({"mask_prob": math.nan}, "between 0 and 1, not nan"),
        ({"mask_length": 0}, "1 or more frames, not 0"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(InputError, match=message.replace("+", r"\+")):
        TTTSettings(**settings)


def test_entropy_does_not_mind_how_masks_would_be():
    TTTSettings(loss_type="entropy", mask_prob=0.0, chunk_size=5)
