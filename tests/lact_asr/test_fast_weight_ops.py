"""Which backend runs, and that asking for one that cannot run is an error."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lact_asr.errors import InputError
from lact_asr.fast_weight_ops import BACKEND_VARIABLE, chosen_backend, muon_step, newton_schulz, row_norms


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_is_the_reference_on_a_cpu(monkeypatch):
    assert chosen_backend(torch.zeros(1)) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the interpreter is for tests that ask for it by name
    assert chosen_backend(torch.zeros(1)) == "torch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_is_triton_on_a_gpu():
    assert chosen_backend(torch.zeros(1, device="cuda")) == "triton"
    assert chosen_backend(torch.zeros(1, device="cuda", dtype=torch.float64)) == "torch"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "torch"), ((8, 0), "triton"), ((9, 0), "triton")])
def test_gpus_that_are_too_old_take_the_reference(monkeypatch, capability, expected):
    monkeypatch.setattr("lact_asr.fast_weight_ops.TRITON_IS_INSTALLED", True)
    monkeypatch.setattr("lact_asr.fast_weight_ops.BUILT_FOR_AMD", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():  # no GPU need be there
        tensor = torch.empty(1, device="cuda")
    assert chosen_backend(tensor) == expected
    if expected == "torch":
        with pytest.raises(InputError, match=r"capability 8\.0"):
            chosen_backend(tensor, "triton")


def test_the_environment_takes_the_place_of_auto(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "triton")
    with pytest.raises(InputError, match=BACKEND_VARIABLE):
        chosen_backend(torch.zeros(1))
    assert chosen_backend(torch.zeros(1), "torch") == "torch"
    monkeypatch.setenv(BACKEND_VARIABLE, "cuda")
    with pytest.raises(InputError, match="'cuda'"):
        chosen_backend(torch.zeros(1))


def test_triton_where_it_cannot_run_is_an_error(monkeypatch):
    with pytest.raises(InputError, match=r"CUDA device|not installed"):
        newton_schulz(torch.zeros(2, 3), backend="triton")
    monkeypatch.setattr("lact_asr.fast_weight_ops.TRITON_IS_INSTALLED", True)
    with pytest.raises(InputError, match="not float64"):
        newton_schulz(torch.zeros(2, 3, dtype=torch.float64), backend="triton")
    monkeypatch.setattr("lact_asr.fast_weight_ops.BUILT_FOR_AMD", True)
    with pytest.raises(InputError, match="AMD"):
        newton_schulz(torch.zeros(2, 3), backend="triton")
    monkeypatch.setattr("lact_asr.fast_weight_ops.TRITON_IS_INSTALLED", False)
    with pytest.raises(InputError, match="not installed"):
        newton_schulz(torch.zeros(2, 3), backend="triton")


@pytest.mark.parametrize("with_momentum", [True, False])
def test_a_tuple_of_matrices_equals_each_alone(with_momentum):
    generator = torch.Generator().manual_seed(0)
    weights, gradients, momenta = (
        tuple(torch.randn(2, *shape, generator=generator) for shape in [(5, 3), (3, 5)]) for _ in range(3)
    )
    norms = tuple(row_norms(w) for w in weights)
    momenta = momenta if with_momentum else None
    beta = torch.tensor(0.5)
    together, kept = muon_step(weights, gradients, norms, momenta, beta)
    for i in range(2):
        alone, momentum = muon_step(weights[i], gradients[i], norms[i], momenta[i] if momenta else None, beta)
        assert torch.equal(together[i], alone)
        assert (kept is None and momentum is None) or torch.equal(kept[i], momentum)
