"""Statistics of a model's features in training: collected, kept beside the checkpoint, and what alignment aims at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lact_asr.atomic_files import replacing
from lact_asr.errors import InputError

STATISTICS_NAME = "feature_statistics.safetensors"


@dataclass(frozen=True)
class FeatureStatistics:
    """Means and variances of a model's features in training: the source that alignment aims at.

    Attributes:
        feature_mean, feature_variance: [C] of the front end's output over frames.
        hidden_mean, hidden_variance: [L, D] of every hidden state over frames.
        token_mean, token_variance: [V, L, D] of every hidden state over the frames where the model said a token.
        token_count: [V] int64, those frames; tokens that were never said have 0.
    """

    feature_mean: Tensor
    feature_variance: Tensor
    hidden_mean: Tensor
    hidden_variance: Tensor
    token_mean: Tensor
    token_variance: Tensor
    token_count: Tensor


class FeatureAccumulator:
    """Sums over the frames of utterances, in float64; Σ x and Σ x² of everything and by the token that was said.

    Args:
        vocabulary: V, number of tokens.
    """

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.frames = vocabulary, 0
        self._sums: dict[str, Tensor] = {}

    def add(self, features: Tensor, hidden_states: Tensor, logits: Tensor) -> None:
        """Take in an utterance: [T, C], [L, T, D] and [T, V], none of them with padding."""
        features, hidden = features.double().cpu(), hidden_states.double().cpu().transpose(0, 1)  # [T, L, D]
        said = logits.argmax(-1).cpu()
        for name, values in (("feature", features), ("hidden", hidden)):
            self._add(f"{name}_sum", values.sum(0))
            self._add(f"{name}_squares", values.square().sum(0))
        for name, values in (("token_sum", hidden), ("token_squares", hidden.square())):
            self._add(name, values.new_zeros(self.vocabulary, *values.shape[1:]).index_add_(0, said, values))
        self._add("token_count", torch.bincount(said, minlength=self.vocabulary))
        self.frames += len(features)

    def statistics(self) -> FeatureStatistics:
        """Means and (biased) variances in float32; 0 for tokens that were never said."""
        sums, count = self._sums, self._sums["token_count"]
        said = count.clamp(min=1)[:, None, None]
        means_and_variances = {}
        for name, frames in (("feature", self.frames), ("hidden", self.frames), ("token", said)):
            mean = sums[f"{name}_sum"] / frames
            means_and_variances[f"{name}_mean"] = mean.float()
            variance = (sums[f"{name}_squares"] / frames - mean.square()).clamp(min=0)
            means_and_variances[f"{name}_variance"] = variance.float()
        return FeatureStatistics(**means_and_variances, token_count=count)

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums[name] + values if name in self._sums else values


def save_statistics(statistics: FeatureStatistics, path: Path) -> None:
    """Write statistics as safetensors, to a temporary name that is then renamed.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in vars(statistics).items()}, temporary)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {error}.") from None


def load_statistics(path: Path, model: nn.Module, device: torch.device | str = "cpu") -> FeatureStatistics:
    """What `save_statistics` wrote beside a checkpoint.

    Raises:
        InputError: there is no such file, it is damaged, or it is another model's.
    """
    if not path.is_file():
        raise InputError(
            f"There are no training statistics {path}: write them with python -m lact_asr.inference.feature_statistics."
        )
    try:
        statistics = FeatureStatistics(**load_file(path, device=str(device)))
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"The training statistics {path} cannot be read ({error}); write them again.") from None
    config = model.config
    shape = (config.vocab_size, config.num_hidden_layers + 1, config.hidden_size)
    if statistics.feature_mean.shape != tuple(config.conv_dim[-1:]) or statistics.token_mean.shape != shape:
        raise InputError(f"The training statistics {path} are another model's; write them again.")
    return statistics
