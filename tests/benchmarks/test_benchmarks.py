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
from benchmarks.peers import load_peers, peer_argument

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
        "--peer",
        f"lact={ROOT}",
        "--dtype",
        "float32",
        "--output_dir",
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "kernels.json").read_text())
    (failure,) = content["failures"]
    assert "peer lact cannot be loaded" in failure  # one sentence, and all else is measured
    assert not content["left_out_for_time"]
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


AUDIO_LIBRARIES = (
    "soundfile", "soxr", "lhotse", "jiwer", "rapidfuzz", "kenlm", "pyctcdecode", "kaldingram", "espeakng_loader",
    "audiomentations", "pyroomacoustics", "librosa", "cmaes", "psutil", "jinja2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "hidden"),
    [
        ("benchmarks.kernels, benchmarks.tiles", (*AUDIO_LIBRARIES, "transformers", "einops", "matplotlib")),
        ("benchmarks.model, benchmarks.training, lact_asr.inference.ttt_procedure", (*AUDIO_LIBRARIES, "accelerate")),
    ],
)
def test_few_libraries_are_needed(modules, hidden):
    """A GPU machine may have no audio readers, no corpus tools and no decoders; the kernels' benchmarks need PyTorch alone."""
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); import {modules}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_peers():
    with pytest.raises(argparse.ArgumentTypeError, match="unknown peer 'somebody'"):
        peer_argument("somebody=.")
    with pytest.raises(argparse.ArgumentTypeError, match="no folder /nowhere"):
        peer_argument("lact=/nowhere")
    loaded, failures = load_peers([peer_argument(f"lact={ROOT}"), peer_argument("gram_newton_schulz")])
    assert len(failures) == 2
    assert f"peer lact cannot be loaded from {ROOT}" in failures[0]
    singular_values = torch.linalg.svdvals(loaded["torch.optim.Muon"](torch.randn(2, 6, 9)).float())
    assert ((singular_values > 0.5) & (singular_values < 1.3)).all()


# The folder, file and function that each adapter looks for, in modules as small as can be.
CHECKOUTS = {
    "lact": ("lact_llm/lact_model/ttt_operation.py", "def zeropower_via_newtonschulz5(G): return 2 * G"),
    "dion": ("dion/newton_schulz_triton.py", "def newton_schulz_triton(G, epsilon=1e-7): return 2 * G"),
    "flash_muon": ("flash_muon/muon.py", "def fast_newtonschulz(G, steps): assert G.ndim == 2; return 2 * G"),
    "gram_newton_schulz": (
        "gram_newton_schulz/__init__.py", "class GramNewtonSchulz:\n    def __call__(self, X): return 2 * X",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKOUTS)
def test_a_checkout_of_a_peer_is_loaded(name, tmp_path):
    file, source = CHECKOUTS[name]
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    with mock.patch.dict(sys.modules):
        loaded, failures = load_peers([peer_argument(f"{name}={tmp_path}")])
    assert not failures
    assert torch.equal(loaded[name](torch.ones(3, 4, 5)), torch.full((3, 4, 5), 2.0))
    assert str(tmp_path) not in sys.path


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
    assert kept == [1, 2, 3, 5, 6, 8, 10, 12, 14]
    assert not [entry for entry in results if "failure" in entry]
    lines = list(tiles.report(results))
    assert sum("(default)" in line for line in lines) == 9
    assert {"gradients", "apply", "gradients, of tokens"} < set(lines)


def test_targets_come_first():
    cases = all_cases(quick=False)
    assert [case.is_target for case in cases[:3]] == [True] * 3
    assert not any(case.is_target for case in cases[3:])
