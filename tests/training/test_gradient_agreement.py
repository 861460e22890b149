"""Cosines between self-supervised and CTC gradients, by hand and from the command line."""

from __future__ import annotations

import csv

import pytest
import torch

from lact_asr.checkpoint import save_checkpoint
from lact_asr.inference.ttt.objectives import suta_objective
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.text import build_vocabulary
from lact_asr.training.gradient_agreement import batch_cosines, groups_of, main
from lact_asr.training.training_losses import TrainingLosses
from lact_asr.ttt_names import PARAMETER_GROUPS
from lact_asr.ttt_parameters import select_parameters


def test_cosines_by_hand(speaking_model):
    model = speaking_model(num_hidden_layers=1).double()
    groups = groups_of(model)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_values": torch.randn(2, 5_000, dtype=torch.float64, generator=generator),
        "attention_mask": torch.ones(2, 5_000, dtype=torch.long),
        "labels": torch.tensor([[5, 6], [7, -100]]),
    }
    cosines = batch_cosines(TrainingLosses(model, TTTSettings("entropy", parameters=tuple(groups))), groups, batch)
    assert set(cosines) == {*PARAMETER_GROUPS, "feature_offset"}
    for row in range(2):
        output = model(batch["input_values"][row : row + 1], labels=batch["labels"][row : row + 1])
        losses = suta_objective(output.logits[0], model.config.ctc_blank_id), output.loss
        for group in ("norms", "biases", "output"):
            parameters = list(select_parameters(model, (group,)).values())
            ssl, ctc = (
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
                for loss in losses
            )
            expected = torch.nn.functional.cosine_similarity(ssl, ctc, dim=0)
            torch.testing.assert_close(cosines[group][row], expected.double(), rtol=1e-5, atol=1e-7)


@pytest.fixture
def checkpoint(speaking_model, tmp_path):
    path = tmp_path / "best_model.pt"
    save_checkpoint(path, speaking_model(num_hidden_layers=1), build_vocabulary())
    return path


def test_the_command(checkpoint, corpus_dir, tmp_path, capsys):
    flags = ["--checkpoint", checkpoint, "--data_dir", corpus_dir, "--subset", "train-generated", "--max_samples", 3]
    flags += ["--losses", "entropy", "masked_prediction", "--conditions", "clean", "noise:5", "--noise_colour", "white"]
    assert main([*map(str, flags), "--output", str(tmp_path / "table.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 2 * 2 * 7
    assert {row["condition"] for row in rows} == {"clean", "noise:5"}
    values = {(row["condition"], row["loss"], row["group"]): row for row in rows}
    assert values["clean", "entropy", "norms"]["cosine"] != values["noise:5", "entropy", "norms"]["cosine"]
    assert values["clean", "masked_prediction", "output"]["utterances"] == "0"  # the loss does not see the output layer
    assert all(-1 <= float(row["cosine"]) <= 1 for row in rows if row["utterances"] != "0")
    assert "noise:5, masked_prediction, front_end" in capsys.readouterr().out


def test_noise_needs_a_source(checkpoint, corpus_dir, capsys):
    flags = [
        "--checkpoint",
        checkpoint,
        "--data_dir",
        corpus_dir,
        "--subset",
        "dev-generated",
        "--conditions",
        "noise:5",
    ]
    assert main(list(map(str, flags))) == 2
    assert "needs --noise_dir or --noise_colour" in capsys.readouterr().err
