"""Training for test-time training in two processes: together they learn what one process learns from the same batches."""

from __future__ import annotations

import math

import pytest
import torch

BATCHES = ("--batch_size", 1, "--max_steps", 2, "--max_grad_norm", 1e9)  # clipping would hide a wrong scale
CLEAN_VIEWS = ("--ttt_outer_loss", "clean_view", "--noise_colours", "white", "--noise_prob", 1)
REPEATABLE = {
    "joint": ("--ttt_training", "joint", "--ttt_loss_type", "entropy"),
    "meta": ("--ttt_training", "meta", "--ttt_loss_type", "entropy"),
    "meta with clean views": ("--ttt_training", "meta", "--ttt_loss_type", "entropy", *CLEAN_VIEWS),
}
MASKED = {"masked": ("--ttt_training", "joint", "--ttt_loss_type", "masked_prediction")}  # each process draws its own
CALIBRATED = {"calibrated": ("--ttt_training", "meta", "--ttt_loss_type", "entropy", "--ttt_optimizer", "sgd")}
MODEL = {
    "num_hidden_layers": 1,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}


@pytest.fixture(scope="module")
def by_two_processes(train_in_two_processes, write_config, tmp_path_factory):
    """The finished runs, by name."""
    folder = tmp_path_factory.mktemp("two_processes")
    trainings = {name: (*BATCHES, *flags) for name, flags in (REPEATABLE | MASKED | CALIBRATED).items()}
    return train_in_two_processes(write_config(folder, **MODEL), folder, trainings)


@pytest.mark.parametrize("name", REPEATABLE)
def test_losses_and_weights_are_those_of_one_process_with_the_same_batches(by_two_processes, train, name):
    two = by_two_processes[name]
    one = train(*BATCHES, "--gradient_accumulation_steps", 2, *REPEATABLE[name], **MODEL)
    assert (two.state()["progress"]["batches_done"], one.state()["progress"]["batches_done"]) == (2, 4)
    for found, expected in zip(two.events("train"), one.events("train"), strict=True):
        assert _losses(found) == pytest.approx(_losses(expected), rel=1e-5)
    for found, expected in zip(_moments(two), _moments(one), strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()
    weights = one.state()["model"]
    for key, found in two.state()["model"].items():
        torch.testing.assert_close(
            found, weights[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_masked_prediction_trains_every_parameter(by_two_processes):
    run = by_two_processes["masked"]
    assert all(math.isfinite(event["ttt_loss"]) for event in run.events("train"))
    assert all(moment.abs().max() > 0 for moment in _moments(run))
    first, second = run.state()["random"]
    assert not torch.equal(first["cpu"], second["cpu"])


def test_rates_are_calibrated_on_batches_of_both_processes(by_two_processes, train):
    one = train(*BATCHES, "--gradient_accumulation_steps", 2, *CALIBRATED["calibrated"], **MODEL)
    found, expected = (run.state()["model"]["ttt_rates.log_rates"] for run in (by_two_processes["calibrated"], one))
    assert expected.std() > 0.5
    # Two steps of learning move them by less than other batches would.
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def _losses(event: dict) -> dict[str, float]:
    """What was minimised, by name."""
    names = ("ctc_loss", "ttt_loss", "ctc_loss_after", "clean_divergence_after")
    return {name: event[name] for name in names if event[name] is not None}


def _moments(run) -> list[torch.Tensor]:
    """AdamW's first moments, which are sums of gradients, of every trained parameter."""
    return [entry["exp_avg"] for entry in run.state()["optimizer"]["state"].values()]
