"""Flags that many commands share, and types of flags whose errors say what is allowed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

from lact_asr.data.dataset_types import DATASET_TYPES

Number = TypeVar("Number", int, float)


def add_checkpoint(parser: argparse._ActionsContainer, remark: str = "") -> None:
    """``--checkpoint``, required; a remark follows its help."""
    model = "best_model.pt, a save_pretrained folder or a hub name; most commands take Transformers' CTC models, too (facebook/wav2vec2-base-960h)"
    parser.add_argument("--checkpoint", required=True, metavar="FILE_OR_FOLDER", help=model + remark)


def add_dataset_type(parser: argparse._ActionsContainer) -> None:
    """``--dataset_type``, beside ``--data_dir``."""
    parser.add_argument(
        "--dataset_type",
        choices=tuple(DATASET_TYPES),
        default="librispeech",
        help="how --data_dir is laid out. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in DATASET_TYPES.items())
        + " (default: %(default)s)",
    )


def positive_int(text: str) -> int:
    """Type of a flag: 1, 2, …"""
    return checked(int, text, lambda value: value >= 1, "a whole number of 1 or more")


def non_negative_int(text: str) -> int:
    """Type of a flag: 0, 1, …"""
    return checked(int, text, lambda value: value >= 0, "a whole number of 0 or more")


def positive_float(text: str) -> float:
    """Type of a flag: a finite number above 0."""
    return checked(float, text, lambda value: 0 < value < math.inf, "a number above 0")


def non_negative_float(text: str) -> float:
    """Type of a flag: a finite number of 0 or more."""
    return checked(float, text, lambda value: 0 <= value < math.inf, "a number of 0 or more")


def share(text: str) -> float:
    """Type of a flag: a number from 0 to 1."""
    return checked(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def checked(kind: Callable[[str], Number], text: str, is_valid: Callable[[Number], bool], rule: str) -> Number:
    """A flag's value.

    Raises:
        argparse.ArgumentTypeError: it is none of that kind or not valid; the message gives the rule.
    """
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {rule}")
    return value
