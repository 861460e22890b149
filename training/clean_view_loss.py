"""Undoing noise as a loss: what the model says of noisy speech against what it says of the same speech without noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lact_asr.wav2vec2_encoder import frames_mask


def clean_view_divergence(logits: Tensor, clean_logits: Tensor, lengths: Tensor) -> Tensor:
    """KL(p_clean ‖ p) in nats, the mean over each row's frames and then over rows; no gradient flows to p_clean.

    Teacher-student learning on parallel recordings (Li et al., arXiv 1708.05466): noise leaves the frames where they are,
    so no labels and no alignment are needed. Here the model before its step teaches the model after it.

    Args:
        logits: [B, T, V] float, of noisy audio.
        clean_logits: [B, T, V] float, of the same audio without its noise.
        lengths: [B] int64, the valid length of each row, 1 or more.

    Returns:
        A float32 scalar.
    """
    real = frames_mask(lengths, logits.shape[1])
    log_probs, targets = (
        functional.log_softmax(frames[real].float(), dim=-1) for frames in (logits, clean_logits.detach())
    )
    divergences = functional.kl_div(log_probs, targets, reduction="none", log_target=True).sum(-1)
    return torch.stack([row.mean() for row in divergences.split(lengths.tolist())]).mean()
