"""The training command end to end: what it writes, that it learns, accumulates, adapts rates and survives bad gradients."""

import copy
import itertools
import json
import math
import re
import time

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import lact_asr.training.run_setup as run_setup
from lact_asr.data.batching import SpeechDataset
from lact_asr.text import build_vocabulary
from lact_asr.training.optimization import schedule_factor
from lact_asr.training.trainer import Trainer, TrainingLosses

STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0}


def test_every_file_is_there_and_nothing_temporary(finished_run):
    names = {path.name for path in finished_run.folder.iterdir()}
    assert names == {
        "best_model.pt", "checkpoint_00000008.pt", "checkpoint_00000010.pt", "lm.arpa", "training_log.jsonl", "tensorboard", "run.json", "vocab.json",
        "config.json", "left_out.json", "test_results.json", "training_curves.png",
    }  # fmt: skip
    assert list((finished_run.folder / "tensorboard").glob("events.*"))
    assert (finished_run.folder / "lm.arpa").read_text().lstrip().startswith("\\data\\")
    assert json.loads((finished_run.folder / "left_out.json").read_text()) == []


def test_log_has_every_step_with_finite_losses_and_the_schedule(finished_run, training_seconds):
    events = finished_run.events("train")
    assert [event["step"] for event in events] == list(range(1, 11))
    assert [event["epoch"] for event in events] == [0] * 5 + [1] * 5
    for event in events:
        assert math.isfinite(event["ctc_loss"])
        assert math.isfinite(event["ttt_loss"])
        assert event["skipped_steps"] == 0
        factor = schedule_factor(event["step"] - 1, 4, 10)
        assert event["learning_rate"] == pytest.approx(5e-4 * factor)
        assert event["encoder_learning_rate"] == pytest.approx(5e-4 * 0.5 * factor)
    assert events[0]["audio_hours"] < events[-1]["audio_hours"] == pytest.approx(2 * training_seconds / 3600, rel=1e-3)


def test_progress_shows_the_time_left_loss_error_rate_and_speed(finished_run):
    bar = r"training: +60%.*6/10 \[\d\d:\d\d<\d\d:\d\d.*, loss \d+\.\d+, best WER \d+\.\d%, \d+ s audio/s"
    assert re.search(bar, finished_run.err)


def test_validation_after_each_epoch_decides_the_best_model(finished_run):
    events = finished_run.events("validation")
    assert [event["step"] for event in events] == [5, 10]
    best = min(events, key=lambda event: (event["wer"], event["cer"], event["step"]))
    notes = finished_run.best().notes
    assert (notes["step"], notes["wer"], notes["cer"]) == (best["step"], best["wer"], best["cer"])
    assert f"validation WER {best['wer']:.2%}" in finished_run.out


def test_best_model_is_self_contained_plain_and_whole(finished_run):
    content = torch.load(finished_run.folder / "best_model.pt", weights_only=True)
    assert content["vocabulary"] == build_vocabulary()
    loaded = finished_run.best()
    assert not loaded.model.training
    assert loaded.processor.vocabulary == build_vocabulary()
    assert loaded.model(torch.randn(1, 8_000)).logits.isfinite().all()


def test_run_description_vocabulary_and_test_results(finished_run):
    folder = finished_run.folder
    description = json.loads((folder / "run.json").read_text())
    assert description["arguments"]["max_epochs"] == 2
    assert (description["processes"], description["distribution"], description["precision"]) == (1, "NO", "no")
    assert all(description[name] for name in ("command", "git_commit", "python", "packages", "machine"))
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32
    assert description["parameters"]["total"] == sum(p.numel() for p in finished_run.best().model.parameters())
    assert json.loads((folder / "vocab.json").read_text()) == build_vocabulary()
    results = json.loads((folder / "test_results.json").read_text())
    assert results["subset"] == "test-generated"
    assert results["utterances"] == 1
    assert f"greedy WER {results['wer']:.2%}, CER {results['cer']:.2%}" in finished_run.out


def test_ttt_head_exists_only_with_enable_ttt(finished_run, train):
    assert finished_run.best().model.masked_prediction is not None
    without = train("--max_steps", 1)
    assert without.best().model.masked_prediction is None
    assert without.events("train")[0]["ttt_loss"] is None


def test_ttt_loss_trains_its_head(train):
    run = train("--max_steps", 1, "--enable_ttt", "--weight_decay", 0, "--peak_lr", 1e-3)
    moments = dict(zip(_trainable(run), run.state()["optimizer"]["state"].values(), strict=True))
    for name in ("masked_prediction.mask_embedding", "masked_prediction.predictor.0.weight"):
        assert moments[name]["exp_avg"].abs().max() > 0


def test_it_learns_two_utterances_by_heart(train, write_manifest, tmp_path):
    write_manifest(tmp_path / "two.jsonl", 2)
    model = {"hidden_size": 64, "feat_extract_norm": "group", "conv_bias": False, "initializer_range": 0.08}
    run = train(
        "--data_dir", tmp_path, "--dataset_type", "manifest", "--train_subset", "two", "--val_subset", "two",
        "--max_steps", 60, "--peak_lr", 5e-3, "--warmup_steps", 5, "--eval_steps", 60, "--encoder_lr_scale", 1,
        **model, **STILL,
    )  # fmt: skip
    losses = [event["ctc_loss"] for event in run.events("train")]
    # 2.9 is where a model stays that has learned how frequent letters are and nothing about sounds.
    assert losses[0] > 5
    assert losses[-1] < 1.5
    assert run.events("validation")[-1]["cer"] < 0.5


def test_accumulation_of_two_batches_gives_the_gradient_of_their_union(train, write_manifest, tmp_path):
    write_manifest(tmp_path / "four.jsonl", 4)
    data = (
        "--data_dir", tmp_path, "--dataset_type", "manifest", "--train_subset", "four", "--val_subset", "four",
        "--max_grad_norm", 1e9,  # clipping would hide a wrong scale
    )  # fmt: skip
    whole = train(*data, "--batch_size", 4, "--max_steps", 1, name="whole", **STILL)
    halves = train(
        *data, "--batch_size", 2, "--gradient_accumulation_steps", 2, "--max_steps", 1, name="halves", **STILL
    )
    assert halves.state()["progress"]["batches_done"] == 2
    states = zip(
        whole.state()["optimizer"]["state"].values(), halves.state()["optimizer"]["state"].values(), strict=True
    )
    for expected, actual in states:  # the first moment is a tenth of the gradient
        assert (actual["exp_avg"] - expected["exp_avg"]).norm() <= 1e-4 * expected["exp_avg"].norm()


def test_max_epochs_counts_steps_over_epoch_ends_when_accumulating(train, training_seconds):
    """Five batches an epoch in pairs: five steps in two epochs, none lost at the first epoch's end."""
    run = train("--max_epochs", 2, "--gradient_accumulation_steps", 2)
    progress = run.state()["progress"]
    assert (progress["step"], progress["epoch"], progress["batches_done"]) == (5, 1, 5)
    assert progress["audio_seconds"] == pytest.approx(2 * training_seconds, rel=1e-3)


def test_steps_with_infinite_gradients_are_left_out_and_counted(train, monkeypatch):
    original, initial = run_setup.make_model, {}

    def make_model(*arguments, **options):
        model = original(*arguments, **options)
        initial.update(copy.deepcopy(model.state_dict()))
        model.ctc_head.weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
        return model

    monkeypatch.setattr(run_setup, "make_model", make_model)
    run = train("--max_steps", 2)
    assert [event["skipped_steps"] for event in run.events("train")] == [1, 2]
    for name, value in run.state()["model"].items():
        assert torch.equal(value, initial[name]), name


def test_logged_speed_counts_waiting_for_data(train, monkeypatch):
    read = SpeechDataset.__getitem__

    def slowly(self, draws):
        time.sleep(0.5)
        return read(self, draws)

    monkeypatch.setattr(SpeechDataset, "__getitem__", slowly)
    run = train("--max_steps", 4, "--logging_steps", 4)
    (event,) = run.events("train")
    assert event["share_waiting_for_data"] > 0.5
    assert event["audio_seconds_per_second"] < event["audio_hours"] * 3600 / (4 * 0.5)


def test_training_goes_on_after_one_bad_gradient(train, monkeypatch):
    original, calls = run_setup.make_model, itertools.count()

    def make_model(*arguments, **options):
        model = original(*arguments, **options)
        model.ctc_head.bias.register_hook(lambda gradient: gradient * (math.nan if next(calls) == 1 else 1.0))
        return model

    monkeypatch.setattr(run_setup, "make_model", make_model)
    run = train("--max_steps", 3)
    assert [event["skipped_steps"] for event in run.events("train")] == [0, 1, 1]
    assert all(value.isfinite().all() for value in run.state()["model"].values())
    assert next(iter(run.state()["optimizer"]["state"].values()))["step"] == 2


def test_nothing_but_losses_that_are_not_finite_end_a_run_with_the_ids_of_their_utterances(train, monkeypatch):
    """The first step is well, and the gradients of the others are: only their losses are not."""
    forward, train_batch, seen = TrainingLosses.forward, Trainer._train_batch, []

    def infinite_from_the_second_on(self, **batch):
        losses = forward(self, **batch)
        return losses._replace(total=losses.total + (math.inf if len(seen) > 1 else 0))

    def noting_ids(self, batch):
        seen.append(batch["ids"])
        return train_batch(self, batch)

    flags = ("--max_steps", 6, "--max_skipped_steps", 3, "--resume_from_checkpoint", "auto")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLosses, "forward", infinite_from_the_second_on)
        patch.setattr(Trainer, "_train_batch", noting_ids)
        run = train(*flags)
    assert run.exit_code == 2
    assert "not finite in 3 steps in a row, 2 to 4; the ids" in run.err.splitlines()[-1]
    assert [(event["step"], event["ids"]) for event in run.events("skipped")] == list(
        zip((2, 3, 4), seen[1:], strict=True)
    )
    assert next(iter(run.state()["optimizer"]["state"].values()))["step"] == 1
    mended = train(*flags)
    assert mended.exit_code == 0
    assert [event["skipped_steps"] for event in mended.events("train")] == [0, 1, 2, 3, 3, 3]


def test_gradients_are_clipped_to_the_norm_asked_for(train):
    run = train("--max_steps", 1, "--max_grad_norm", 1e-3)
    moments = [entry["exp_avg"] for entry in run.state()["optimizer"]["state"].values()]
    norm = torch.stack([moment.norm() for moment in moments]).norm()
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-2)  # AdamW's first moment after one step: (1 - 0.9) · gradient


def test_mixed_precision_on_the_cpu_is_said_to_have_no_effect(train):
    assert "--mixed_precision has no effect on the CPU" in train("--max_steps", 1, "--mixed_precision").out


def test_warmup_beyond_the_end_is_said(train):
    assert "will not reach its peak" in train("--max_steps", 1, "--warmup_steps", 50).out


@pytest.mark.parametrize("order", ["update_then_apply", "apply_then_update"])
def test_several_processes_wait_for_no_gradient_that_never_comes(finished_run, order):
    """With apply_then_update the last block's update serves no loss; DistributedDataParallel must not wait for it."""
    model = finished_run.best().model.train()
    model.config.lact_update_order = order
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        losses = DistributedDataParallel(TrainingLosses(model), find_unused_parameters=True)
        batch = torch.randn(2, 8_000), torch.ones(2, 8_000, dtype=torch.int64), torch.tensor([[5, 6], [7, -100]])
        for _ in range(2):  # a second pass finds out that the first was never finished
            losses(*batch)[0].backward()
    finally:
        torch.distributed.destroy_process_group()
    assert model.ctc_head.weight.grad.abs().max() > 0


def _trainable(run) -> list[str]:
    """Names of the parameters in the order of the optimiser's state: four groups, as `parameter_groups` makes them."""
    model = run.best().model
    return [
        name
        for encoder, decayed in itertools.product((True, False), (True, False))
        for name, parameter in model.named_parameters()
        if name.startswith("front_end.") == encoder and (parameter.ndim > 1) == decayed
    ]
