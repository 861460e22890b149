"""Test-time training without a backward pass: CMA-ES draws and compares candidates for the feature offset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lact_asr.inference.ttt.copies import Copies
from lact_asr.inference.ttt.outcome import TTTOutcome
from lact_asr.inference.ttt.stage import GradientStage
from lact_asr.inference.ttt.views import Rows
from lact_asr.ttt_names import FEATURE_OFFSET

PATIENCE, LEAST_GAIN = 3, 1e-3  # generations without a gain of so much end the search


@dataclass
class SearchDistribution:
    """What CMA-ES draws candidates from: N(mean, σ² C). It is to a search what an optimiser's moments are to steps.

    Attributes:
        mean: float64 [C].
        deviation: σ.
        covariance: float64 [C, C]; None: the identity.
    """

    mean: np.ndarray
    deviation: float
    covariance: np.ndarray | None = None

    def fork(self) -> SearchDistribution:
        """Another that goes its own way."""
        covariance = None if self.covariance is None else self.covariance.copy()
        return SearchDistribution(self.mean.copy(), self.deviation, covariance)

    def averaged_with(self, other: SearchDistribution, momentum: float) -> SearchDistribution:
        """m · self + (1 − m) · other, E-BATS' moving average over utterances (arXiv 2506.07078)."""
        size = len(self.mean)
        mine, its = (np.eye(size) if one.covariance is None else one.covariance for one in (self, other))
        return SearchDistribution(
            momentum * self.mean + (1 - momentum) * other.mean,
            momentum * self.deviation + (1 - momentum) * other.deviation,
            momentum * mine + (1 - momentum) * its,
        )


class SearchStage(GradientStage):
    """Generations of CMA-ES (Hansen, arXiv 1604.00772) in place of gradient steps; see `GradientStage`.

    ``steps`` is the largest number of generations, ``learning_rate`` the first standard deviation. The best candidate of the
    last generation is taken.
    """

    starts_from_logits = False  # it compares candidates, and has no use for a graph

    def optimizer(self) -> SearchDistribution:
        """Where a search starts: around no offset."""
        channels = self.adaptation.front_end.conv_layers[-1].conv.out_channels
        return SearchDistribution(np.zeros(channels), self.adaptation.rates)

    def run(self, rows: Rows, copies: Copies, outcomes: list[TTTOutcome], optimizer: SearchDistribution) -> None:
        """Search for one utterance's offset; the losses are each generation's lowest, ``optimizer`` is where it ended."""
        (outcome,) = outcomes
        if not outcome.adapted or not self.settings.steps:
            return
        from cmaes import CMA  # late: other stages run without it

        search = CMA(
            optimizer.mean, optimizer.deviation, cov=optimizer.covariance, seed=self.settings.seed,
            population_size=self.settings.population,
        )  # fmt: skip
        best, stalled = None, 0
        for _ in range(self.settings.steps):
            best = self._generation(search, rows, copies)
            previous = outcome.losses[-1] if outcome.losses else math.inf
            outcome.losses.append(best[1])
            outcome.steps += 1
            stalled = 0 if previous - best[1] > LEAST_GAIN else stalled + 1
            if stalled == PATIENCE:
                break
        copies.replace({FEATURE_OFFSET: self._offset(best[0], copies)})
        if not math.isfinite(best[1]):
            outcome.refuse("the self-supervised loss or its gradient is not finite")
        # The library shows its mean only.
        optimizer.mean, optimizer.deviation, optimizer.covariance = search.mean, search._sigma, search._C

    def _generation(self, search, rows: Rows, copies: Copies) -> tuple[np.ndarray, float]:
        """The best candidate of one generation and its loss; a loss that is not finite counts as the worst."""
        scored = []
        for _ in range(search.population_size):
            candidate = search.ask()
            copies.replace({FEATURE_OFFSET: self._offset(candidate, copies)})
            (loss,) = self.losses(rows)
            scored.append((candidate, loss if math.isfinite(loss) else math.inf))
        search.tell([(candidate, min(loss, np.finfo(float).max)) for candidate, loss in scored])
        return min(scored, key=lambda pair: pair[1])

    def _offset(self, candidate: np.ndarray, copies: Copies) -> Tensor:
        offset = copies[FEATURE_OFFSET]
        return torch.from_numpy(candidate).to(offset)[None]
