"""Does a self-supervised step go where the labels would? ``python -m lact_asr.training.gradient_agreement --help``."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lact_asr.atomic_files import write_text
from lact_asr.checkpoint import LoadedCheckpoint, load_hybrid_checkpoint
from lact_asr.data.batching import make_dataloader
from lact_asr.data.corpora import load_corpus
from lact_asr.data.corruptions import Condition, Corruption, check_noise_source, make_corruptions
from lact_asr.data.noise import COLOURS, utterance_generator
from lact_asr.devices import choose_device
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.results.summary import markdown_table
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.utterances import spread_evenly
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.shared_flags import add_checkpoint, add_dataset_type
from lact_asr.training.training_losses import TrainingLosses
from lact_asr.ttt_names import FEATURE_OFFSET, LOSSES, PARAMETER_GROUPS
from lact_asr.ttt_parameters import select_parameters

DESCRIPTION = """Cosines between the gradients of self-supervised losses and of CTC with the right labels.

One cosine for each utterance and parameter group, over all of the group's parameters. Where it is above 0, a small step
on the self-supervised loss lowers the CTC loss too: such a group is worth adapting, others are not."""


class Agreement(NamedTuple):
    """One line of the table.

    Attributes:
        condition, loss, group: names.
        utterances: those whose gradients are not 0.
        cosine: mean over utterances, -1 to 1.
        positive: share of utterances above 0.
    """

    condition: str
    loss: str
    group: str
    utterances: int
    cosine: float
    positive: float


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Measure, print a Markdown table, write CSV if wanted; returns the exit code."""
    arguments = _parse(argv)
    checkpoint = load_hybrid_checkpoint(arguments.checkpoint)
    checkpoint.model.to(choose_device(arguments.device))
    conditions = [Condition.parse(text) for text in arguments.conditions]
    check_noise_source(conditions, arguments.noise_dir, arguments.noise_colour)
    corruptions = make_corruptions(conditions, arguments.noise_dir, arguments.noise_colour, arguments.seed)
    lines = []
    for condition, corruption in corruptions.items():
        for loss in arguments.losses:
            cosines = _cosines_of_corpus(arguments, checkpoint, loss, corruption, f"{loss}, {condition}")
            lines += [summarise(condition, loss, group, values) for group, values in cosines.items()]
    if arguments.output is not None:
        _write_csv(lines, arguments.output)
    print(markdown_table([["condition, loss, group", "utterances", "cosine", "positive"], *map(_cells, lines)]))
    return 0


def groups_of(model: HybridASRForCTC) -> dict[str, set[str]]:
    """Names of the parameters of every group that the model has."""
    groups = {}
    for group in PARAMETER_GROUPS:
        with contextlib.suppress(InputError):  # a model without fast weights
            groups[group] = set(select_parameters(model, (group,)))
    return {**groups, FEATURE_OFFSET: {FEATURE_OFFSET}}


def batch_cosines(losses: TrainingLosses, groups: dict[str, set[str]], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """cos(∇SSL, ∇CTC) of each utterance: group -> [B]; NaN where either gradient is 0.

    Args:
        losses: whose settings name the self-supervised loss and let every group adapt.
        groups: of `groups_of`.
        batch: ``input_values``, ``attention_mask``, ``labels``.
    """
    torch.manual_seed(0)  # masks are drawn from it
    inputs, mask, rows = batch["input_values"], batch["attention_mask"], len(batch["labels"])
    ssl = losses.inner_gradients(inputs, mask)
    ctc = losses.inner_gradients(inputs, mask, batch["labels"])
    cosines = {}
    for group, names in groups.items():
        first, second = (
            torch.cat([gradients[name].reshape(rows, -1) for name in sorted(names)], dim=1).double()
            for gradients in (ssl, ctc)
        )
        cosines[group] = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    return cosines


def summarise(condition: str, loss: str, group: str, cosines: Tensor) -> Agreement:
    """Of the utterances' cosines, NaN left out."""
    known = cosines[~cosines.isnan()]
    return Agreement(condition, loss, group, len(known), known.mean().item(), (known > 0).double().mean().item())


def _cosines_of_corpus(
    arguments: argparse.Namespace, checkpoint: LoadedCheckpoint, loss: str, corruption: Corruption, title: str
) -> dict[str, Tensor]:
    model = checkpoint.model
    groups = groups_of(model)
    settings = TTTSettings(
        loss,
        parameters=tuple(groups),
        mask_prob=model.config.ttt_mask_prob,
        mask_length=model.config.ttt_mask_length,
        constant_updates=False,
        frozen_layers=0,
    )
    losses = TrainingLosses(model, settings)
    corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
    batches = make_dataloader(
        spread_evenly(list(corpus.cuts), arguments.max_samples), checkpoint.processor, arguments.batch_size, shuffle=False,
        transform=lambda samples, key: corruption(samples, utterance_generator(arguments.seed, key))[0],
    )  # fmt: skip
    found = defaultdict(list)
    for batch in tqdm(batches, title):
        tensors = {key: batch[key].to(model.device) for key in ("input_values", "attention_mask", "labels")}
        for group, cosines in batch_cosines(losses, groups, tensors).items():
            found[group].append(cosines)
    return {group: torch.cat(cosines) for group, cosines in found.items()}


def _cells(line: Agreement) -> list[str]:
    name = f"{line.condition}, {line.loss}, {line.group}"
    return [name, str(line.utterances), f"{line.cosine:+.3f}", f"{line.positive:.0%}"]


def _write_csv(lines: list[Agreement], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([Agreement._fields, *lines])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lact_asr.training.gradient_agreement", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_checkpoint(parser)
    parser.add_argument("--data_dir", type=Path, required=True, help="a labelled corpus: use development data")
    parser.add_argument("--subset", required=True, help="of the corpus")
    add_dataset_type(parser)
    parser.add_argument(
        "--losses", nargs="+", default=["entropy"], help=f"of {', '.join(LOSSES)}, or sums (default: entropy)"
    )
    parser.add_argument(
        "--conditions", nargs="+", default=["clean"], metavar="KIND[:VALUE]",
        help="as of evaluate_robustness, e.g. clean noise:10 (default: clean)",
    )  # fmt: skip
    parser.add_argument("--noise_dir", type=Path, default=None, help="recordings for the condition noise")
    parser.add_argument("--noise_colour", choices=tuple(COLOURS), default=None, help="or Gaussian noise of this colour")
    parser.add_argument("--max_samples", type=int, default=None, help="at most so many utterances, evenly spread")
    parser.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE.csv", help="write the table as CSV too")
    parser.add_argument("--seed", type=int, default=0, help="of the conditions (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
