"""Copies of parameters: what a row computes with its copy is what it computes alone, and the model comes back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lact_asr.inference.ttt.copies import lent, parameter_copies, takes_copies_of_rows
from lact_asr.ttt_parameters import PARAMETER_GROUPS, select_parameters

SAMPLES = 3_000


@torch.no_grad()
def changed(parameters: dict[str, nn.Parameter], rows: int) -> dict[str, Tensor]:
    """Other values for each row, [rows, ...]."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.stack([p + 0.2 * p.std(correction=0).clamp(min=0.1) * torch.randn(p.shape, generator=generator) for _ in range(rows)])
        for name, p in parameters.items()
    }  # fmt: skip


def assert_rows_are_what_they_are_alone(model: nn.Module, groups: tuple[str, ...], tolerance: float = 2e-4) -> None:
    parameters = select_parameters(model, groups)
    assert takes_copies_of_rows(model, parameters)
    audio = torch.randn(3, SAMPLES, generator=torch.Generator().manual_seed(1))
    values = changed(parameters, 3)
    with torch.no_grad(), lent(model), parameter_copies(model, parameters, rows=3) as copies:
        for name, tensor in copies.items():
            tensor.copy_(values[name])
        together = model(audio).logits
    for row in range(3):
        alone = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name in parameters:
                alone.get_parameter(name).copy_(values[name][row])
            expected = alone(audio[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row], expected, atol=tolerance, rtol=1e-3)
        assert (together[row] - model.eval()(audio[row : row + 1]).logits[0]).abs().max() > 10 * tolerance


@pytest.mark.parametrize("groups", [*((group,) for group in PARAMETER_GROUPS), PARAMETER_GROUPS], ids=str)
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_rows_of_the_hybrid_model(speaking_model, groups, norm):
    model = speaking_model(feat_extract_norm=norm, conv_bias=norm == "layer")
    assert_rows_are_what_they_are_alone(model, groups, tolerance=1e-3)


def test_rows_of_momentum_biases(speaking_model):
    assert_rows_are_what_they_are_alone(speaking_model(use_momentum=True), ("biases",), tolerance=1e-3)


def test_rows_of_low_rank_fast_weights(speaking_model):
    assert_rows_are_what_they_are_alone(speaking_model(w0_w2_low_rank=2), ("fast_weights",), tolerance=1e-3)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_rows_of_transformers_models(transformers_model, family, norm):
    model = transformers_model(family, feat_extract_norm=norm)
    assert_rows_are_what_they_are_alone(model, ("norms", "front_end", "output"))


def test_each_rows_gradient_is_its_own(speaking_model):
    model = speaking_model(num_hidden_layers=1).double()
    parameters = select_parameters(model, PARAMETER_GROUPS)
    audio = torch.randn(2, SAMPLES, dtype=torch.float64)
    with lent(model), parameter_copies(model, parameters, rows=2) as copies:
        model(audio).logits[1].sin().sum().backward()
        found = {name: tensor.grad for name, tensor in copies.items()}
    model.eval()(audio[1:]).logits.sin().sum().backward()
    for name, parameter in parameters.items():
        assert not found[name][0].any()
        torch.testing.assert_close(found[name][1], parameter.grad, atol=1e-8, rtol=1e-6)


def test_other_modules_do_not_take_copies_of_rows():
    model = nn.Sequential(nn.Bilinear(2, 2, 2))
    assert not takes_copies_of_rows(model, dict(model.named_parameters()))


@pytest.fixture
def lent_model(speaking_model):
    """A model in mixed modes, with gradients and frozen parts, and a deep copy of all that must come back."""
    model = speaking_model(num_hidden_layers=1)
    model.train()
    model.blocks[0].eval()
    model.front_end.requires_grad_(False)
    for number, parameter in enumerate(model.blocks.parameters()):
        parameter.grad = torch.full_like(parameter, float(number)) if number % 2 else None
    before = {
        "values": copy.deepcopy(model.state_dict()),
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "gradient_values": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
    }
    return model, before


def assert_given_back(model: nn.Module, before: dict) -> None:
    assert all(torch.equal(value, before["values"][name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == before["flags"]
    assert [module.training for module in model.modules()] == before["modes"]
    for parameter, gradient, values in zip(
        model.parameters(), before["gradients"], before["gradient_values"], strict=True
    ):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, values)


def spoil(model: nn.Module, copies: dict[str, Tensor]) -> None:
    """What adaptation does, and worse."""
    model(torch.randn(2, SAMPLES)).logits.sum().backward()
    with torch.no_grad():
        for tensor in copies.values():
            tensor.fill_(float("nan"))
    torch.rand(3)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("raises", [False, True])
def test_everything_comes_back(lent_model, raises, rows):
    model, before = lent_model
    parameters = select_parameters(model, ("norms", "front_end"))
    random_state = torch.get_rng_state()
    try:
        with lent(model), parameter_copies(model, parameters, rows) as copies:
            spoil(model, copies)
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert raises
    assert_given_back(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("rows", [1, 2])
def test_inside_only_the_copies_learn(lent_model, rows):
    model, before = lent_model
    parameters = select_parameters(model, ("front_end",))  # frozen before
    with lent(model), parameter_copies(model, parameters, rows) as copies:
        assert not any(module.training for module in model.modules())
        model(torch.randn(2, SAMPLES)).logits.sum().backward()
        assert all(tensor.grad.any() for tensor in copies.values())
    assert_given_back(model, before)


@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_flow_through_copies_to_parameters(speaking_model, rows):
    model = speaking_model(num_hidden_layers=1).double()
    parameters = select_parameters(model, PARAMETER_GROUPS)
    audio = torch.randn(rows, SAMPLES, dtype=torch.float64)
    (model(audio).logits.sin().sum()).backward()
    expected = {name: parameter.grad for name, parameter in parameters.items()}
    model.zero_grad()
    with parameter_copies(model, parameters, rows):
        model(audio).logits.sin().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-8, rtol=1e-6)
