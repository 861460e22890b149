"""What training a model takes whatever runs it: operations, and bytes kept for the backward pass.

Counted by PyTorch on tensors without values, without time or memory at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.model import backend
from lact_asr import fast_weight_ops, modeling_hybrid_asr
from lact_asr.attention import BlockWindows, allowed_pairs, goes_by_blocks
from lact_asr.sample_rate import SAMPLE_RATE_HZ

COUNTED_SECONDS = (3, 6, 12)


def _of_batched_products(_total: torch.Size, left: torch.Size, right: torch.Size, **_) -> int:
    return 2 * left.numel() * right[-1]


def _of_derivative(gradient: torch.Size, _hidden: torch.Size, taps: torch.Size, *_, **__) -> int:
    return 2 * gradient[:2].numel() * taps[-3:].numel()


def _of_convolution(hidden: torch.Size, taps: torch.Size, *_, out_shape: torch.Size, **__) -> int:
    return _of_derivative(out_shape, hidden, taps)


_UNKNOWN_TO_PYTORCH = {
    torch.ops.aten.baddbmm_: _of_batched_products,
    torch.ops.lact_asr.convolution: _of_convolution,
    torch.ops.lact_asr.convolution_of_hidden: _of_derivative,
    torch.ops.lact_asr.convolution_of_taps: _of_derivative,
}


class ModelCounts:
    """A model that is never filled with values, and what one utterance of it takes in training.

    Args:
        build: makes the model.
        kernels: fast weights by the Triton kernels, whose operations nobody counts, instead of plain PyTorch.
        autocast: 16-bit format of matrix products and what follows them; None for float32 throughout.
    """

    def __init__(
        self, build: Callable[[], nn.Module], kernels: bool = False, autocast: torch.dtype | None = None
    ) -> None:
        self._kernels, self._autocast = kernels, autocast
        self._without_values = FakeTensorMode()
        with self._without_values:
            self.model = build().eval()
            for layer in self.model.modules():  # dropout and checkpointing as in training; no LayerDrop, no masks
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.train()

    def flops(self, num_samples: int) -> int:
        """Matrix products (a multiplication and an addition are two operations) of a forward and a backward pass.

        Fast weights by the plain formulas, attention over all pairs of frames, every layer; what gradient checkpointing does twice
        counts twice.
        """
        # Fused attention is not known to the counter on every device; written out it is products.
        counter = FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_PYTORCH)
        with self._counting(), sdpa_kernel(SDPBackend.MATH), counter:
            self._output(num_samples).backward()
            self.model.zero_grad()
        return counter.get_total_flops()

    def saved_bytes(self, num_samples: int) -> int:
        """Bytes of activations that wait for the backward pass on a GPU."""
        parameters = {parameter.untyped_storage()._cdata for parameter in self.model.parameters()}
        storages = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                storages[storage._cdata] = storage
            return tensor

        with (
            self._counting(),
            _as_on_gpus(),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            self._output(num_samples)
        return sum(storage.nbytes() for storage in storages.values())

    @contextmanager
    def _counting(self) -> Iterator[None]:
        # The model looks whether any frame is padding, which needs values: none is.
        all_pairs = mock.patch.object(modeling_hybrid_asr, "allowed_pairs", _allowed_pairs_without_padding)
        # Kernels that never run take tensors of any device.
        anywhere = mock.patch.object(fast_weight_ops, "_obstacle", return_value=None)
        autocast = torch.autocast("cpu", self._autocast, enabled=self._autocast is not None)
        with self._without_values, all_pairs, anywhere, autocast, backend("triton" if self._kernels else "torch"):
            yield

    def _output(self, num_samples: int) -> Tensor:
        """Something to differentiate."""
        return self.model(torch.empty(1, num_samples)).logits.sum()


def _allowed_pairs_without_padding(frame_mask: Tensor, window_size: int) -> BlockWindows | None:
    return allowed_pairs(frame_mask, window_size) if goes_by_blocks(frame_mask.shape[1], window_size) else None


@contextmanager
def _as_on_gpus() -> Iterator[None]:
    """What GPUs keep otherwise than CPUs.

    Dropout's masks are bytes; fused attention keeps no mask; under autocast layer norms give float32.
    """
    attention, layer_norm = functional.scaled_dot_product_attention, functional.layer_norm

    def dropout(hidden: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(hidden, p, training)[0] if training else hidden

    def fused(*tensors: Tensor, dropout_p: float = 0.0, **settings) -> Tensor:
        return attention(*tensors, **settings)

    def norm(hidden: Tensor, *settings) -> Tensor:
        return layer_norm(hidden.float(), *settings)

    replacements = {"dropout": dropout, "scaled_dot_product_attention": fused, "layer_norm": norm}
    with mock.patch.multiple(functional, **replacements):
        yield


def of_seconds(count: Callable[[int], int]) -> Callable[[float], float]:
    """`ModelCounts.flops` or `ModelCounts.saved_bytes` as a function of an utterance's seconds.

    Newton-Schulz costs the same for every utterance, attention grows with the square of its length and all else in proportion, so
    three counted lengths give every other one, but for the last part of a frame.
    """
    counts = [count(seconds * SAMPLE_RATE_HZ) for seconds in COUNTED_SECONDS]
    quadratic = np.polyfit(COUNTED_SECONDS, counts, deg=2)
    return lambda seconds: float(np.polyval(quadratic, seconds))
