"""Every kernel as the host functions launch it, compiled for GPUs that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lact_asr.kernels.ahead_of_time import CompiledLaunch


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "89", "90"])
def test_no_launch_spills_or_asks_for_too_much_shared_memory(capability, tmp_path):
    pytest.importorskip("triton", reason="the package triton is not installed: pip install lact-asr[triton]")
    # A process of its own: kernels of this one may have been defined for the interpreter.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "lact_asr.kernels.ahead_of_time", "--capability", capability]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    kernels = {line.split()[2] for line in result.stdout.splitlines() if line.startswith("ok")}
    assert {"gram_kernel", "polynomial_kernel", "product_kernel", "split_kernel", "apply_kernel"} < kernels
    assert {"weight_update_kernel", "hidden_gradients_kernel", "hidden_kernel"} < kernels
    assert {"gradients_kernel", "backward_weights_kernel", "backward_tokens_kernel"} < kernels
    assert {"swiglu_kernel", "swiglu_queries_kernel"} < kernels


@pytest.mark.parametrize(
    ("stack_bytes", "shared_memory_bytes", "fits"), [(0, 99 * 1024, True), (8, 0, False), (0, 99 * 1024 + 1, False)]
)
def test_a_spill_or_too_much_shared_memory_does_not_fit(stack_bytes, shared_memory_bytes, fits):
    launch = CompiledLaunch(
        "kernel", 89, "", registers=255, stack_bytes=stack_bytes, shared_memory_bytes=shared_memory_bytes
    )
    assert launch.fits() == fits
