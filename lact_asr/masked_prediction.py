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

    def loss(self, student: Tensor, teacher: Tensor, masked_frames: Tensor) -> Tensor:
        """Mean over masked frames of |predictor(h') − LN(h)|² / D, with no gradient through the teacher's h.

        The target is layer-normalised without scale: hidden states that may move would otherwise shrink together with
        their prediction (data2vec, arXiv 2202.03555, does the same).

        Args:
            student: h' [B, T, D], the pass whose frames were masked.
            teacher: h [B, T, D], the unmasked pass.
            masked_frames: [B, T] bool.

        Returns:
            A float32 scalar; 0 with a gradient where no frame is masked.
        """
        predicted = self.predictor(student[masked_frames]).float()
        target = functional.layer_norm(teacher.detach()[masked_frames].float(), teacher.shape[-1:])
        return functional.mse_loss(predicted, target, reduction="sum") / max(1, target.numel())
