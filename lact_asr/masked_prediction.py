"""Masked prediction: the self-supervised loss that is trained with the model and is the default at test time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lact_asr.configuration_hybrid_asr import HybridASRConfig


class MaskedPredictionHead(nn.Module):
    """Predicts the hidden states of the unmasked pass at frames that were masked (the teacher is the model itself).

    Holds the embedding that replaces masked frames, and a predictor of two layers.
    """

    def __init__(self, config: HybridASRConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.mask_embedding = nn.Parameter(torch.empty(hidden))
        self.predictor = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def losses(self, student: Tensor, teacher: Tensor, masked_frames: Tensor) -> tuple[Tensor, Tensor]:
        """|predictor(h') − LN(h)|² / D summed over each row's masked frames, with no gradient through the teacher's h.

        The target is layer-normalised without scale: hidden states that may move would otherwise shrink together with
        their prediction (data2vec, arXiv 2202.03555, does the same).

        Args:
            student: h' [B, T, D], the pass whose frames were masked.
            teacher: h [B, T, D], the unmasked pass.
            masked_frames: [B, T] bool.

        Returns:
            (sums [B] float32, 0 with a gradient where no frame is masked; masked frames of each row [B]).
        """
        predicted = self.predictor(student[masked_frames]).float()
        target = functional.layer_norm(teacher.detach()[masked_frames].float(), teacher.shape[-1:])
        of_frames = functional.mse_loss(predicted, target, reduction="none").mean(-1)
        row_of_frame = masked_frames.nonzero()[:, 0]
        return of_frames.new_zeros(len(student)).index_add(0, row_of_frame, of_frames), masked_frames.sum(-1)

    def loss(self, student: Tensor, teacher: Tensor, masked_frames: Tensor) -> Tensor:
        """The mean of `losses` over all masked frames of a batch, a scalar."""
        sums, counts = self.losses(student, teacher, masked_frames)
        return sums.sum() / counts.sum().clamp(min=1)
