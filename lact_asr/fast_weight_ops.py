"""The model's way into `lact_asr.kernels`: the one module that imports them, and the one that chooses a backend.

``backend`` is "torch" (the plain references, Newton-Schulz with a backward pass of its own), "triton", or "auto": Triton for tensors
of up to 32 bits on an NVIDIA GPU of compute capability 8.0 or more where Triton is installed, else PyTorch. The environment variable LACT_ASR_BACKEND takes the place of
"auto". Asking for Triton where it cannot run is an error, not a silent fallback.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from lact_asr.errors import InputError
from lact_asr.kernels.fast_weight_apply import reference as apply_reference
from lact_asr.kernels.fast_weight_gradients import reference as gradients_reference
from lact_asr.kernels.muon_step import reference as muon_reference
from lact_asr.kernels.newton_schulz import stored_steps
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS

BACKENDS = ("auto", "torch", "triton")
BACKEND_VARIABLE = "LACT_ASR_BACKEND"
TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None
BUILT_FOR_AMD = torch.version.hip is not None
SMALLEST_CAPABILITY = (8, 0)  # GPUs before it have too little shared memory, and no bfloat16
row_norms = muon_reference.row_norms

_log = logging.getLogger(__name__)
_logged: set[tuple[str, torch.device]] = set()
_triton_operations: dict[str, ModuleType] = {}
_Matrices = Tensor | tuple[Tensor, ...]


def chosen_backend(tensor: Tensor, backend: str = "auto") -> str:
    """ "torch" or "triton" for an operation on ``tensor``.

    Raises:
        InputError: Unknown backend, or Triton asked for where it cannot run.
    """
    source = ""
    if backend == "auto" and BACKEND_VARIABLE in os.environ:
        backend, source = os.environ[BACKEND_VARIABLE], f" (environment variable {BACKEND_VARIABLE})"
    if backend not in BACKENDS:
        raise InputError(f"Fast-weight backend {backend!r}{source} is unknown; choose one of {', '.join(BACKENDS)}.")
    if backend == "torch" or (backend == "auto" and (not tensor.is_cuda or _obstacle(tensor))):
        _log_once("torch", tensor.device)
        return "torch"
    if obstacle := _obstacle(tensor):
        raise InputError(f"The Triton backend{source} cannot be used: {obstacle}.")
    _log_once("triton", tensor.device)
    return "triton"


def _obstacle(tensor: Tensor) -> str | None:
    """Why Triton cannot take this tensor."""
    if not TRITON_IS_INSTALLED:
        return "the package triton is not installed"
    if BUILT_FOR_AMD:
        return "its kernels were never compiled for AMD GPUs"
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its kernels take float32, float16 and bfloat16, not {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensor is on {tensor.device}; it needs a CUDA device (or TRITON_INTERPRET=1, for tests)"
    if tensor.is_cuda and _capability(tensor.device) < SMALLEST_CAPABILITY:
        return "its kernels need a GPU of compute capability 8.0 or more"
    return None


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _log_once(backend: str, device: torch.device) -> None:
    if not torch.compiler.is_compiling() and (backend, device) not in _logged:
        _logged.add((backend, device))
        _log.info("fast weights on %s: %s kernels", device, backend)


def _triton_operation(name: str) -> ModuleType:
    if not _triton_operations:
        _load_triton_operations()
    return _triton_operations[name]


def _load_triton_operations() -> None:
    # Late, as everything else must work where Triton is missing, and as its interpreter must be chosen before.
    for name in ("newton_schulz", "muon_step", "fast_weight_gradients", "fast_weight_apply"):
        _triton_operations[name] = importlib.import_module(f"lact_asr.kernels.{name}.operation")


def newton_schulz(matrices: Tensor, coefficients=COEFFICIENTS, *, backend: str = "auto") -> Tensor:
    """Orthogonalise: see `lact_asr.kernels.newton_schulz.reference.newton_schulz`.

    Args:
        matrices: [..., m, n].
        coefficients: (a, b, c) for each step.
        backend: see the module.
    """
    if chosen_backend(matrices, backend) == "triton":
        return _triton_operation("newton_schulz").newton_schulz(matrices, coefficients)
    return stored_steps.newton_schulz(matrices, coefficients)


def muon_step(
    weights: _Matrices, gradient: _Matrices, target_row_norms: _Matrices, momentum: _Matrices | None = None,
    beta: Tensor | None = None, coefficients=COEFFICIENTS, orthogonalise: bool = True, *, backend: str = "auto",
) -> tuple[_Matrices, _Matrices | None]:  # fmt: skip
    """One Muon step: see `lact_asr.kernels.muon_step.reference.muon_step`.

    Args:
        weights, gradient, target_row_norms, momentum: tensors, or tuples of as many tensors: all matrices of a layer then
            share their launches.
        beta: β, broadcastable to [..., 1, 1]; needed with ``momentum``.
        coefficients, orthogonalise: of Newton-Schulz, and whether to use it.
        backend: see the module.

    Returns:
        (weights after the step, momentum after the step or None), tensors or tuples as given.
    """
    if isinstance(weights, Tensor):
        momentum = None if momentum is None else (momentum,)
        updated, momentum = muon_step(
            (weights,), (gradient,), (target_row_norms,), momentum, beta, coefficients, orthogonalise, backend=backend
        )
        return updated[0], None if momentum is None else momentum[0]
    if orthogonalise and chosen_backend(gradient[0], backend) == "triton":
        operation = _triton_operation("muon_step")
        return operation.muon_step(weights, gradient, target_row_norms, momentum, beta, coefficients)
    stepped = [
        muon_reference.muon_step(w, g, n, m, beta, coefficients, orthogonalise, stored_steps.newton_schulz)
        for w, g, n, m in zip(weights, gradient, target_row_norms, momentum or [None] * len(weights), strict=True)
    ]
    updated, momenta = zip(*stepped, strict=True)
    return updated, None if momentum is None else momenta


def fast_weight_gradients(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor,
    lengths: Tensor | None = None, *, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The inner loss's gradients: see `lact_asr.kernels.fast_weight_gradients.reference.fast_weight_gradients`."""
    chosen = chosen_backend(keys, backend)
    module = _triton_operation("fast_weight_gradients") if chosen == "triton" else gradients_reference
    return module.fast_weight_gradients(weights, keys, values, learning_rates, lengths)


def fast_weight_apply(weights: tuple[Tensor, Tensor, Tensor], queries: Tensor, *, backend: str = "auto") -> Tensor:
    """The fast network's forward pass: see `lact_asr.kernels.fast_weight_apply.reference.fast_weight_apply`."""
    chosen = chosen_backend(queries, backend)
    module = _triton_operation("fast_weight_apply") if chosen == "triton" else apply_reference
    return module.fast_weight_apply(weights, queries)


if TRITON_IS_INSTALLED and torch.cuda.is_available():
    _load_triton_operations()  # before `torch.compile` traces a model, which would break its graph at an import
