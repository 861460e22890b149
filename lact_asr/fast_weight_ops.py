"""The model's way into `lact_asr.kernels`: the one module that imports them, and the one that chooses a backend."""

from __future__ import annotations

from collections.abc import Callable

from lact_asr.errors import InputError
from lact_asr.kernels.fast_weight_apply import reference as apply_reference
from lact_asr.kernels.fast_weight_gradients import reference as gradients_reference
from lact_asr.kernels.muon_step import reference as muon_reference
from lact_asr.kernels.newton_schulz import reference as newton_schulz_reference

BACKENDS = ("auto", "torch")


def _torch_only(operation: Callable, backend: str) -> Callable:
    """The plain PyTorch operation; asking for a backend that this version does not have is an error, not a fallback."""
    if backend not in BACKENDS:
        raise InputError(f"Fast-weight backend {backend!r} is not available; choose one of {', '.join(BACKENDS)}.")
    return operation


def newton_schulz(*args, backend: str = "auto", **kwargs):
    """See `lact_asr.kernels.newton_schulz.reference.newton_schulz`."""
    return _torch_only(newton_schulz_reference.newton_schulz, backend)(*args, **kwargs)


def muon_step(*args, backend: str = "auto", **kwargs):
    """See `lact_asr.kernels.muon_step.reference.muon_step`."""
    return _torch_only(muon_reference.muon_step, backend)(*args, **kwargs)


def fast_weight_gradients(*args, backend: str = "auto", **kwargs):
    """See `lact_asr.kernels.fast_weight_gradients.reference.fast_weight_gradients`."""
    return _torch_only(gradients_reference.fast_weight_gradients, backend)(*args, **kwargs)


def fast_weight_apply(*args, backend: str = "auto", **kwargs):
    """See `lact_asr.kernels.fast_weight_apply.reference.fast_weight_apply`."""
    return _torch_only(apply_reference.fast_weight_apply, backend)(*args, **kwargs)


def row_norms(weights):
    """See `lact_asr.kernels.muon_step.reference.row_norms`."""
    return muon_reference.row_norms(weights)
