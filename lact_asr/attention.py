"""What softmax attention needs beside the library's kernel: rotary positions, and who may attend to whom."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(tensor: Tensor, theta: float) -> Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864): pairs (x_i, x_{i+d/2}) turn by t · theta^(-2i/d).

    Args:
        tensor: queries or keys [B, heads, T, d], d even.
        theta: base of the wavelengths.
    """
    frames, dim = tensor.shape[-2:]
    frequencies = theta ** (-torch.arange(0, dim, 2, device=tensor.device, dtype=torch.float32) / dim)
    angles = torch.arange(frames, device=tensor.device, dtype=torch.float32)[:, None] * frequencies
    cosine, sine = angles.cos().to(tensor.dtype), angles.sin().to(tensor.dtype)
    first, second = tensor.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def allowed_pairs(frame_mask: Tensor, window_size: int) -> Tensor | None:
    """Which frame may attend to which, once for all layers.

    Args:
        frame_mask: [B, T] bool, true for real frames.
        window_size: width of the window in frames, centred on the query; -1 attends to the whole row.

    Returns:
        [B or 1, 1, T, T] bool, or None where every pair is allowed (attention without a mask is faster).
    """
    allowed = None
    if window_size != -1:
        position = torch.arange(frame_mask.shape[1], device=frame_mask.device)
        allowed = ((position[:, None] - position).abs() <= window_size // 2)[None]
    if not frame_mask.all():
        allowed = frame_mask[:, None, :] if allowed is None else allowed & frame_mask[:, None, :]
        # A query with nothing to attend to would be NaN: padded ones may see everything, and nobody reads them.
        allowed = allowed | ~frame_mask[:, :, None]
    return None if allowed is None else allowed[:, None]
