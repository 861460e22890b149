"""Triton kernels as PyTorch operators."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import CustomOpDef


def operator(name: str) -> Callable[[Callable], CustomOpDef]:
    """`torch.library.custom_op` for functions that launch kernels.

    Triton launches on the current device; PyTorch's own operators, and these, run where their first tensor lies.
    """

    def register(function: Callable) -> CustomOpDef:
        @functools.wraps(function)
        def where_the_tensors_lie(*arguments):
            first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
            with torch.cuda.device_of(first):
                return function(*arguments)

        return torch.library.custom_op(f"lact_asr::{name}", where_the_tensors_lie, mutates_args=())

    return register
