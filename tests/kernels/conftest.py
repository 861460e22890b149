"""Where kernels run in this session, and how far from the truth they are."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> str:
    """Where Triton's kernels run in this session."""
    pytest.importorskip("triton", reason="the package triton is not installed: pip install lact-asr[triton]")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def relative_error():
    """Frobenius norm of the difference over that of the expected tensor, in float64."""

    def error(found: torch.Tensor, expected: torch.Tensor) -> float:
        found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
        assert found.shape == expected.shape
        return ((found - expected).norm() / expected.norm().clamp(min=1e-300)).item()

    return error


@pytest.fixture
def needs_gpu(device) -> str:
    if device != "cuda":
        pytest.skip("no CUDA device: bfloat16 products are wrong in Triton's interpreter")
    return device
