"""The benchmark scripts run, write what they say, and count what they say they count."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import costs
from benchmarks.kernels import all_cases
from benchmarks.peers import load_peer, torch_optim_muon

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_kernel_benchmark_writes_its_files(tmp_path):
    result = run(
        "benchmarks.kernels",
        "--device",
        "cpu",
        "--quick",
        "--compile_seconds",
        "0",
        "--dtype",
        "float32",
        "--output_dir",
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "kernels.json").read_text())
    assert not content["failures"]
    measured = {(m["operation"], m["implementation"], m["direction"]) for m in content["measurements"]}
    assert ("muon_step", "pytorch", "forward + backward") in measured
    assert ("newton_schulz", "torch.optim.Muon", "forward") in measured
    assert all(m["median_microseconds"] > 0 for m in content["measurements"])
    with (tmp_path / "kernels.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["measurements"])
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


@pytest.mark.slow
def test_model_benchmark_writes_its_file(tmp_path):
    result = run(
        "benchmarks.model", "--device", "cpu", "--config_path", "configs/tiny.json", "--utterances", "2", "--seconds", "1",
        "--heads", "4", "--budget_seconds", "0", "--no_compile", "--output_dir", str(tmp_path),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "model.json").read_text())
    kinds = {entry["what"].split(",")[0] for entry in content["results"]}
    assert kinds == {"LaCT layer", "training step", "inference", "inference with one TTT step"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_the_default_says_so():
    result = run("benchmarks.kernels")
    assert result.returncode != 0
    assert "No CUDA device" in result.stderr


def test_nothing_but_torch_and_transformers_is_needed():
    # The GPU machine has no audio readers, no corpus tools and no decoders.
    hidden = (
        "soundfile",
        "soxr",
        "lhotse",
        "jiwer",
        "kenlm",
        "pyctcdecode",
        "kaldingram",
        "espeakng_loader",
        "psutil",
        "accelerate",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); import benchmarks.kernels, benchmarks.model, benchmarks.tiles, benchmarks.training; import lact_asr.inference.robustness.peak_memory; import lact_asr.inference.ttt_procedure"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_peers():
    with pytest.raises(ValueError, match="unknown peer 'somebody'"):
        load_peer("somebody=.")
    with pytest.raises(ValueError, match="no folder /nowhere"):
        load_peer("lact=/nowhere")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_peer(f"lact={ROOT}")
    matrices = torch.randn(2, 6, 9)
    singular_values = torch.linalg.svdvals(torch_optim_muon()(matrices).float())
    assert ((singular_values > 0.5) & (singular_values < 1.3)).all()


def test_flops_are_those_of_the_products():
    # Plain: XXᵀ is 2·4·4·6, A² is 2·4·4·4 and (…)X is 2·4·4·6, five times.
    assert costs.newton_schulz_flops(1, 4, 6) == 5 * (2 * 4 * 4 * 6 + 2 * 4**3 + 2 * 4 * 4 * 6)
    # One tile of 64: 9 + 8 products of 64³ after the Gram matrix, and the last one.
    products = 5 + 2 + 2 + 2 * 3 + 4
    assert costs.gram_form_flops(1, 64, 128) == 2 * 64 * 64 * 128 * 2 + products * 2 * 64**3
    assert costs.gram_form_flops(64, 192, 1536) < 0.35 * costs.newton_schulz_flops(64, 192, 1536)


def test_derivatives_of_the_fast_network_by_their_products():
    unit = 2 * 3 * 5 * 7 * 11
    assert costs.gradients_flops(3, 5, 7, 11) == 6 * unit
    assert costs.gradients_flops(3, 5, 7, 11, "stored") == 18 * unit
    assert costs.gradients_flops(3, 5, 7, 11, "on chip") == (6 + 6 + 3 + 6 + 6) * unit
    assert costs.apply_flops(3, 5, 7, 11) == 3 * unit
    assert costs.apply_flops(3, 5, 7, 11, "on chip") == (3 + 3 + 3 + 3 + 2) * unit


@pytest.mark.slow
def test_tile_sizes_are_timed_and_reported(tmp_path):
    """In the interpreter, on tiny shapes, the defaults and one other choice: a check of the script, not of times."""
    pytest.importorskip("triton", reason="the package triton is not installed: pip install lact-asr[triton]")
    from benchmarks import tiles
    from lact_asr.kernels.triton_tiles import Tiles

    args = argparse.Namespace(utterances=1, heads=1, frames=20, head_dim=16, width=32, budget_seconds=0.0)
    kept = []
    with mock.patch.object(tiles, "grid", return_value=[Tiles(16, 16, 4, 1)]):
        results = tiles.run(args, torch.device("cpu"), lambda results: kept.append(len(results)))
    assert kept == [1, 3, 4, 6, 8, 10, 12]
    assert not [entry for entry in results if "failure" in entry]
    lines = list(tiles.report(results))
    assert sum("(default)" in line for line in lines) == 7
    assert {"gradients", "apply", "gradients, of tokens"} < set(lines)


def test_targets_come_first():
    cases = all_cases(quick=False)
    assert [case.is_target for case in cases[:3]] == [True] * 3
    assert not any(case.is_target for case in cases[3:])
