"""Where a command computes."""

from __future__ import annotations

import torch

from lact_asr.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device for ``--device``.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for but PyTorch sees no GPU.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
