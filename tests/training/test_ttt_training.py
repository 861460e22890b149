"""Training that prepares a model for test-time training: what is minimised, in float64 and by hand, and whole runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from lact_asr.inference.ttt.objectives import suta_objective
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt_procedure import TestTimeTrainer
from lact_asr.training.arguments import parse_arguments
from lact_asr.training.model_setup import make_config
from lact_asr.training.training_losses import TrainingLosses
from lact_asr.ttt_names import OPTIMIZERS
from lact_asr.ttt_parameters import select_parameters
from lact_asr.wav2vec2_encoder import frames_mask

SAMPLES = (6_000, 4_800)
CLEAN_VIEW = ("--ttt_training", "meta", "--ttt_loss_type", "entropy", "--ttt_outer_loss", "clean_view")


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two utterances of different lengths."""
    generator = torch.Generator().manual_seed(1)
    input_values = torch.randn(2, SAMPLES[0], dtype=torch.float64, generator=generator)
    attention_mask = (torch.arange(SAMPLES[0]) < torch.tensor(SAMPLES)[:, None]).long()
    labels = torch.tensor([[5, 6, 7], [6, 5, -100]])
    return {"input_values": input_values * attention_mask, "attention_mask": attention_mask, "labels": labels}


@pytest.fixture
def noisy_batch(batch) -> dict[str, Tensor]:
    """The same, to which noise was added."""
    clean, mask = batch["input_values"], batch["attention_mask"]
    noise = torch.randn(clean.shape, dtype=clean.dtype, generator=torch.Generator().manual_seed(2))
    return {**batch, "input_values": clean + 0.5 * noise * mask, "clean_input_values": clean}


@pytest.fixture
def make_losses(speaking_model):
    """A factory of `TrainingLosses` around a model in float64."""

    def make(**changes) -> TrainingLosses:
        values = {
            "num_hidden_layers": 1,
            "enable_ttt": False,
            "ttt_training": "meta",
            "ttt_loss_type": "entropy",
            "ttt_parameters": "norms",
            "ttt_optimizer": "sgd",
            "ttt_learning_rate": 0.05,
            "ttt_loss_weight": 0.3,
            "ttt_after_weight": 2.0,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "layerdrop": 0.0,
            "mask_time_prob": 0.0,
        }
        return TrainingLosses(speaking_model(**{**values, **changes}).double()).train()

    return make


def by_hand(losses: TrainingLosses, batch: dict[str, Tensor], rates: Tensor) -> Tensor:
    """Mean over rows of CTC(θ) + λ·SSL(θ) + μ·L(θ − η∇SSL), one utterance at a time, by functional calls."""
    model, config = losses.model, losses.model.config
    names = list(select_parameters(model, losses.settings.parameters))
    parameters = {name: model.get_parameter(name) for name in names}
    parts = []
    for row in range(2):
        audio = batch["input_values"][row : row + 1, : SAMPLES[row]]
        labels = batch["labels"][row : row + 1]
        frames = model.frame_lengths(torch.tensor([SAMPLES[row]]))

        def logits(values: dict[str, Tensor], audio=audio) -> Tensor:
            return torch.func.functional_call(model, values, (audio,)).logits

        before = logits(parameters)
        loss = suta_objective(before[0], config.ctc_blank_id)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        adapted = {
            name: parameters[name] - rate * gradient
            for name, rate, gradient in zip(names, rates, gradients, strict=True)
        }
        after = logits(adapted) / model.ttt_rates.log_temperature.exp()
        if config.ttt_outer_loss == "clean_view":
            clean = model(batch["clean_input_values"][row : row + 1, : SAMPLES[row]]).logits.log_softmax(-1).detach()
            outer = (clean.exp() * (clean - after.log_softmax(-1))).sum(-1).mean()
        else:
            outer = model.ctc_loss(after, frames, labels)
        ctc_loss = model.ctc_loss(before, frames, labels)
        parts.append(ctc_loss + config.ttt_loss_weight * loss + config.ttt_after_weight * outer)
    return torch.stack(parts).mean()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ttt_outer_loss": "clean_view"},
        {"ttt_parameters": "biases"},
        {"lact_chunk_size": 16},  # of the second row, the second chunk has no frame
    ],
    ids=str,
)
def test_meta_training_differentiates_through_the_step(make_losses, noisy_batch, changes):
    losses, batch = make_losses(**changes), noisy_batch
    model = losses.model
    if "lact_chunk_size" in changes:
        longer, shorter = model.frame_lengths(torch.tensor(SAMPLES))
        assert shorter <= changes["lact_chunk_size"] < longer
    torch.nn.init.constant_(model.ttt_rates.log_temperature, 0.3)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = by_hand(losses, batch, model.ttt_rates.log_rates.exp())
        wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    found = losses(**batch)
    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=1e-8)
    found.total.backward()
    for (name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        if gradient is not None:
            torch.testing.assert_close(
                parameter.grad, gradient, rtol=2e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert model.ttt_rates.log_rates.grad.abs().min() > 0


def test_the_unadapted_model_teaches_without_dropout_or_gradient(make_losses, noisy_batch):
    losses = make_losses(ttt_outer_loss="clean_view", hidden_dropout=0.5, layerdrop=0.5, mask_time_prob=0.5)
    model, passes = losses.model, []
    hook = model.ctc_head.register_forward_hook(lambda module, inputs, output: passes.append(output))
    losses(**noisy_batch)
    hook.remove()
    expected = model.eval()(noisy_batch["clean_input_values"], attention_mask=noisy_batch["attention_mask"])
    assert [output.requires_grad for output in passes] == [True, True, False]
    spoken = frames_mask(expected.frame_lengths, expected.logits.shape[1])
    assert torch.equal(passes[-1][spoken], expected.logits[spoken])


def test_first_order_differs_in_gradients_only(make_losses, batch):
    first, second = make_losses(ttt_first_order=True), make_losses()
    totals = [losses(**batch).total for losses in (first, second)]
    assert torch.equal(*totals)
    for total in totals:
        total.backward()
    rates = [losses.model.ttt_rates.log_rates.grad for losses in (first, second)]
    torch.testing.assert_close(*rates)  # the step's gradient is a factor of theirs in both
    weights = [losses.model.ctc_head.weight.grad for losses in (first, second)]
    assert (weights[0] - weights[1]).norm() > 1e-4 * weights[1].norm()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_step_in_training_is_the_one_at_test_time(make_losses, batch, optimizer):
    parameters = "norms,fast_weights,feature_offset"
    losses = make_losses(ttt_optimizer=optimizer, ttt_parameters=parameters, ttt_steps=2, ttt_learning_rate=1e-3)
    model, passes = losses.model.eval(), []
    hook = model.ctc_head.register_forward_hook(lambda module, inputs, output: passes.append(output.detach()))
    losses(**batch)
    hook.remove()
    settings = TTTSettings.of(model.config, max_entropy=1)  # a random model is sure of nothing
    for row, samples in enumerate(SAMPLES):
        outcome = TestTimeTrainer(model, settings).adapt(batch["input_values"][row, :samples])
        torch.testing.assert_close(passes[-1][row, : len(outcome.logits)], outcome.logits, rtol=1e-5, atol=1e-7)
        assert (outcome.logits - outcome.logits_before).abs().max() > 1e-5


@pytest.mark.parametrize("loss_type", ["masked_prediction+0.5*entropy", "consistency"])
def test_masked_losses_draw_masks_of_their_own(make_losses, batch, loss_type):
    losses = make_losses(ttt_loss_type=loss_type, enable_ttt="masked" in loss_type)
    first, second = losses(**batch), losses(**batch)
    assert torch.equal(first.ctc_loss, second.ctc_loss)
    assert first.ttt_loss != second.ttt_loss
    assert first.ctc_loss_after != second.ctc_loss_after


def test_joint_training_adds_the_loss(make_losses, batch):
    losses = make_losses(ttt_training="joint", ttt_learning_rate=None)
    plain = make_losses(ttt_training="none", ttt_learning_rate=None)
    found, expected = losses(**batch), plain(**batch)
    assert torch.equal(found.ctc_loss, expected.total.detach())
    frames = plain.model.frame_lengths(torch.tensor(SAMPLES))
    logits = plain.model(batch["input_values"], attention_mask=batch["attention_mask"]).logits
    entropies = [suta_objective(row[:length], 0) for row, length in zip(logits, frames, strict=True)]
    torch.testing.assert_close(found.ttt_loss, torch.stack(entropies).mean().detach())
    torch.testing.assert_close(found.total, expected.total + 0.3 * found.ttt_loss)


def test_modes_and_parameters_are_as_before(make_losses, batch):
    losses = make_losses()
    losses.model.blocks[0].eval()
    modes = [module.training for module in losses.modules()]
    values = copy.deepcopy(losses.state_dict())
    losses(**batch).total.backward()
    assert [module.training for module in losses.modules()] == modes
    assert all(torch.equal(tensor, values[name]) for name, tensor in losses.state_dict().items())
    assert "forward" not in losses.model.final_norm.__dict__


def test_a_meta_trained_checkpoint_brings_its_settings_and_rates(train):
    run = train(
        "--ttt_training", "meta", "--ttt_loss_type", "entropy", "--ttt_parameters", "norms,front_end",
        "--ttt_optimizer", "sgd", "--ttt_learning_rate", "1e-3", "--max_steps", 4,
    )  # fmt: skip
    assert run.exit_code == 0, run.err
    model = run.best().model
    trainer = TestTimeTrainer(model)
    (settings,), (stage,) = trainer.settings, trainer.stages
    assert (settings.loss_type, settings.optimizer) == ("entropy", "sgd")
    rates = stage.adaptation.rates
    assert set(rates) == set(select_parameters(model, ("norms", "front_end")))
    assert len({float(rate) for rate in rates.values()}) > 10  # calibrated, each by its own gradient
    for event in run.events("validation"):
        assert math.isfinite(event["wer_without_ttt"])
    for event in run.events("train"):
        assert event["ctc_loss"] != event["ctc_loss_after"]


def test_rates_alone_may_learn(train, finished_run):
    meta = ("--ttt_training", "meta", "--ttt_loss_type", "entropy", "--max_steps", 3, "--peak_lr", 1e-2)
    run = train("--init_checkpoint", finished_run.folder / "best_model.pt", "--ttt_rates_only", *meta)
    assert run.exit_code == 0, run.err
    before, after = finished_run.best().model.state_dict(), run.best().model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name in after)
    rates = after["ttt_rates.log_rates"].exp()
    assert (rates / 2e-3 - 1).abs().min() > 1e-3
    refused = train("--ttt_rates_only", *meta, name="refused")
    assert "--ttt_rates_only needs --ttt_training meta and the --init_checkpoint" in refused.err


def test_word_errors_may_be_the_outer_loss(make_losses, batch, monkeypatch):
    # Enough draws to differ in their errors on every processor: they are not the same everywhere.
    monkeypatch.setattr("lact_asr.training.word_error_loss.HYPOTHESES", 200)
    losses = make_losses(ttt_outer_loss="word_errors")
    losses.delimiter_id = 6
    torch.manual_seed(0)
    found = losses(**batch)
    config = losses.model.config
    total = found.ctc_loss + config.ttt_loss_weight * found.ttt_loss + config.ttt_after_weight * found.word_errors_after
    torch.testing.assert_close(found.total.detach(), total, check_dtype=False)
    found.total.backward()
    rates = losses.model.ttt_rates
    assert rates.log_rates.grad.abs().min() > 0
    assert rates.log_temperature.grad.abs() > 0


def test_training_with_word_errors_logs_them(train):
    run = train(
        "--ttt_training", "meta", "--ttt_loss_type", "entropy", "--ttt_outer_loss", "word_errors", "--max_steps", 2
    )  # fmt: skip
    assert run.exit_code == 0, run.err
    assert all(event["word_errors_after"] > 0 for event in run.events("train"))


def test_joint_training_of_any_loss(train):
    run = train("--ttt_training", "joint", "--ttt_loss_type", "masked_prediction+0.1*entropy", "--max_steps", 2)
    assert run.exit_code == 0, run.err
    assert run.best().model.masked_prediction is not None
    assert all(math.isfinite(event["ttt_loss"]) for event in run.events("train"))


@pytest.mark.parametrize(
    ("flags", "has_head"), [((), True), (("--ttt_training", "none"), False)], ids=["as configured", "none"]
)
def test_none_switches_off_what_the_configuration_sets(tmp_path, write_config, flags, has_head):
    needed = ("--config_path", write_config(tmp_path, enable_ttt=True), "--data_dir", "d", "--output_dir", "o")
    config = make_config(parse_arguments([*map(str, needed), *flags]))
    assert config.enable_ttt == has_head
    assert config.ttt_training == ("joint" if has_head else "none")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ttt_training", "none", "--enable_ttt"), "leave one of them out"),
        (("--ttt_training", "meta", "--ttt_steps", "0"), "Meta-training needs --ttt_steps of 1 or more"),
        (("--ttt_training", "meta", "--ttt_mask_prob", "1"), "share of frames to mask"),
        (("--ttt_training", "joint", "--ttt_outer_loss", "clean_view"), "--ttt_training meta, and needs it"),
        ((*CLEAN_VIEW, "--speed_factors", "0.9,1.1"), "clean_view needs noise to undo"),
        ((*CLEAN_VIEW, "--noise_colours", "pink", "--noise_prob", "0"), "a --noise_prob above 0"),
    ],
)
def test_bad_settings(train, flags, message):
    run = train(*flags, "--max_steps", 1)
    assert run.exit_code != 0
    assert message in run.err
