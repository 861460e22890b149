"""Optimisers of test-time training: out of place, so that a step can be differentiated through, and row by row."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lact_asr.muon_optimizer import MOMENTUM, muon_update

ADAMW_BETAS, ADAMW_EPSILON = (0.9, 0.999), 1e-8


class InnerOptimizer:
    """W ← W − γ · direction, without weight decay; no row of a batch sees another.

    "sgd": the gradient. "adamw": m̂ / (√v̂ + ε) (arXiv 1711.05101), through which no derivative goes: it is the
    gradient's sign at the first step. "muon": 0.2 √max(m, n) · NewtonSchulz of the gradient with momentum and Nesterov's look ahead
    (as `lact_asr.muon_optimizer.MuonAdamW`) for matrices and the fast weights, a matrix for each head; AdamW for the rest.

    Args:
        name: of `lact_asr.ttt_names.OPTIMIZERS`.
        parameters: the model's own, by the names of the copies; a copy without a parameter is a vector for each row.
        rates: γ of all, or of each by name, which may be tensors that learn.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, nn.Parameter], rates: float | Mapping[str, float | Tensor]
    ) -> None:
        self.name, self.rates = name, rates
        self._matrices = {key for key, parameter in parameters.items() if _is_matrix(key, parameter)}
        self._steps = 0
        self._moments: dict[str, tuple[Tensor, ...]] = {}

    def step(
        self, copies: Mapping[str, Tensor], gradients: Mapping[str, Tensor], factor: float = 1.0
    ) -> dict[str, Tensor]:
        """The copies that have a gradient after a step at ``factor`` times the rates."""
        self._steps += 1
        return {
            name: copies[name] - factor * self._rate(name) * self._direction(name, gradient)
            for name, gradient in gradients.items()
        }

    def fork(self) -> InnerOptimizer:
        """Another with the same moments, which goes its own way."""
        other = copy.copy(self)
        other._moments = dict(self._moments)  # tensors are replaced, never written to
        return other

    def _rate(self, name: str) -> float | Tensor:
        return self.rates[name] if isinstance(self.rates, Mapping) else self.rates

    def _direction(self, name: str, gradient: Tensor) -> Tensor:
        if self.name == "sgd":
            return gradient
        if self.name == "muon" and name in self._matrices:
            return self._muon(name, gradient)
        return self._adamw(name, gradient.detach())

    def _adamw(self, name: str, gradient: Tensor) -> Tensor:
        first, second = self._moments.get(name) or (torch.zeros_like(gradient),) * 2
        beta_1, beta_2 = ADAMW_BETAS
        first, second = first.lerp(gradient, 1 - beta_1), second.lerp(gradient.square(), 1 - beta_2)
        self._moments[name] = (first, second)
        scale = (second / (1 - beta_2**self._steps)).sqrt() + ADAMW_EPSILON
        return first / (1 - beta_1**self._steps) / scale

    def _muon(self, name: str, gradient: Tensor) -> Tensor:
        (momentum,) = self._moments.get(name) or (torch.zeros_like(gradient),)
        momentum = momentum.lerp(gradient, 1 - MOMENTUM)
        self._moments[name] = (momentum,)
        ahead = gradient.lerp(momentum, MOMENTUM)
        return muon_update(ahead.reshape(-1, *ahead.shape[-2:])).view_as(ahead)


def sam_ascent(
    copies: Mapping[str, Tensor], gradients: Mapping[str, Tensor], radius: float, rows: int
) -> dict[str, Tensor]:
    """W + ρ ∇ / ‖∇‖, the norm over all that adapts of a row: where sharpness-aware minimisation takes its gradient.

    Foret et al., arXiv 2010.01412.

    Args:
        copies, gradients: by name; with several rows [rows, ...].
        radius: ρ.
        rows: utterances that adapt at once.
    """
    by_row = {name: gradient.reshape(rows, -1) for name, gradient in gradients.items()}
    norms = sum(gradient.square().sum(1) for gradient in by_row.values()).sqrt()  # [rows]
    scales = (radius / norms.clamp_min(1e-12))[:, None]
    return {name: copies[name] + (scales * gradient).view_as(copies[name]) for name, gradient in by_row.items()}


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 or (parameter.ndim == 3 and ".fast_weights." in f".{name}")
