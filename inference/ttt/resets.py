"""When carried adaptation starts again from the trained model: rules that need no transcript."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from lact_asr.errors import InputError


@dataclass(frozen=True)
class LowEntropy:
    """Where a moving average of the loss falls below a threshold: entropy that low is a model that says one thing (SAR, arXiv 2302.12400).

    Attributes:
        threshold: in nats.
        momentum: of the moving average e ← m · e + (1 − m) · loss, which starts at the first loss.
    """

    threshold: float = 0.3
    momentum: float = 0.9


@dataclass(frozen=True)
class LossShift:
    """Where adaptation no longer gains what it gained before (the dynamic reset of DSUTA, arXiv 2406.11064).

    The gain of an utterance is the loss with the weights of half a window after a reset, minus the trained model's. The second
    half of the window gives the gains' mean μ and standard deviation σ. After it, buffers of n utterances whose mean gain is more
    than ``deviations`` · σ / √n above μ, ``patience`` of them in a row, say that the domain has changed.

    Attributes:
        deviations: standard errors.
        patience: buffers in a row.
        window: utterances, 6 or more.
    """

    deviations: float = 2.0
    patience: int = 2
    window: int = 100

    def __post_init__(self) -> None:
        if self.window < 6:  # fewer leave less than two gains to take a deviation of
            raise InputError(
                f"The window of the reset rule loss_shift must be 6 or more utterances, not {self.window}."
            )


ResetRule = LowEntropy | LossShift
RESET_RULES: dict[str, type[ResetRule]] = {"low_entropy": LowEntropy, "loss_shift": LossShift}


@dataclass
class LowEntropyDetector:
    """Follows the losses for `LowEntropy`."""

    rule: LowEntropy
    average: float | None = None

    def observe(self, loss: float) -> bool:
        """Take in a loss; returns whether to reset."""
        momentum = self.rule.momentum
        self.average = loss if self.average is None else momentum * self.average + (1 - momentum) * loss
        return self.average < self.rule.threshold


@dataclass
class LossShiftDetector:
    """Follows the gains for `LossShift`."""

    rule: LossShift
    utterances: int = 0
    failures: int = 0
    gains: list[float] = field(default_factory=list)

    @property
    def remembers(self) -> bool:
        """Whether the present weights are those that gains will be judged by: half a window has passed."""
        return self.utterances == self.rule.window // 2

    @property
    def collects(self) -> bool:
        """Whether the gain of the present utterance tells what to expect: the window's second half."""
        return self.rule.window // 2 < self.utterances < self.rule.window

    @property
    def judges(self) -> bool:
        """Whether the window has passed and gains are compared."""
        return self.utterances >= self.rule.window

    def observe(self, gains: list[float]) -> bool:
        """Take in the gains of a buffer; returns whether to reset."""
        mean, deviation = statistics.mean(self.gains), statistics.stdev(self.gains)
        excess = statistics.mean(gains) - mean
        shifted = excess > self.rule.deviations * deviation / math.sqrt(len(gains))
        self.failures = self.failures + 1 if shifted else 0
        return self.failures >= self.rule.patience
