"""What softmax attention needs beside the library's kernel: rotary positions, who may attend to whom, and short windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

# Queries. Fewer, and 64 and 128, took longer on a CPU at windows of 16 and 32 frames.
SMALLEST_BLOCK = 32


def rotary_tables(like: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, d / 2] of the angles t · theta^(-2i/d) that `rotate` turns by, for queries or keys [..., T, d]."""
    frames, dim = like.shape[-2:]
    frequencies = theta ** (-torch.arange(0, dim, 2, device=like.device, dtype=torch.float32) / dim)
    angles = torch.arange(frames, device=like.device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(tensor: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864): pairs (x_i, x_{i+d/2}) turn by the angles of `rotary_tables`.

    Args:
        tensor: queries or keys [B, heads, T, d], d even.
        tables: of `rotary_tables` for T frames and d.
    """
    return _Rotation.apply(tensor, *tables)


class _Rotation(torch.autograd.Function):
    """The derivative of a rotation turns back; autograd's would pass over the halves three times as often."""

    @staticmethod
    def forward(ctx, tensor: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(tensor, cosine, sine)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradient, cosine, -sine), None, None


def _turned(tensor: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = cosine.shape[-1]
    turned = tensor * torch.cat((cosine, cosine), dim=-1)
    turned[..., :half].addcmul_(tensor[..., half:], sine, value=-1)
    turned[..., half:].addcmul_(tensor[..., :half], sine)
    return turned


@dataclass(frozen=True)
class BlockWindows:
    """A window over long rows: blocks of S queries, each with the S + 2 · reach keys around it.

    Attributes:
        reach: how far a frame sees to either side.
        allowed: [B · blocks, 1, S, S + 2 · reach] bool, which query may attend to which key.
    """

    reach: int
    allowed: Tensor


def allowed_pairs(frame_mask: Tensor, window_size: int) -> Tensor | BlockWindows | None:
    """Which frame may attend to which, once for all layers.

    Args:
        frame_mask: [B, T] bool, true for real frames, which come first in each row.
        window_size: width of the window in frames, centred on the query; -1 attends to the whole row.

    Returns:
        [B or 1, 1, T, T] bool, `BlockWindows` where the window is far shorter than T, or None where every pair is allowed
        (attention without a mask is faster).
    """
    if goes_by_blocks(frame_mask.shape[1], window_size):
        return _block_windows(frame_mask, window_size // 2)
    allowed = None
    if window_size != -1:
        position = torch.arange(frame_mask.shape[1], device=frame_mask.device)
        allowed = ((position[:, None] - position).abs() <= window_size // 2)[None]
    if not frame_mask.all():
        allowed = frame_mask[:, None, :] if allowed is None else allowed & frame_mask[:, None, :]
        # A query with nothing to attend to would be NaN: padded ones may see everything, and nobody reads them.
        allowed = allowed | ~frame_mask[:, :, None]
    return None if allowed is None else allowed[:, None]


def goes_by_blocks(frames: int, window_size: int) -> bool:
    """Whether a window is so much shorter than the row that blocks pay: the work then grows with T, not with T²."""
    reach = window_size // 2
    return window_size != -1 and frames > 2 * (max(SMALLEST_BLOCK, reach) + 2 * reach)


def _block_windows(frame_mask: Tensor, reach: int) -> BlockWindows:
    size = max(SMALLEST_BLOCK, reach)
    query = torch.arange(size, device=frame_mask.device)[:, None]
    key = torch.arange(-reach, size + reach, device=frame_mask.device)
    real = _blocks(frame_mask, size)
    allowed = ((query - key).abs() <= reach) & _with_neighbours(real, reach)[:, None, :]
    return BlockWindows(reach, (allowed | ~real.flatten(0, 1)[:, :, None])[:, None])


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | BlockWindows | None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention, softmax(q kᵀ / √d) v over the allowed pairs.

    Args:
        queries, keys, values: [B, heads, T, d].
        allowed: of `allowed_pairs`.
        dropout: probability of leaving out a pair.

    Returns:
        [B, heads, T, d].
    """
    if not isinstance(allowed, BlockWindows):
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, dropout_p=dropout)
    rows, _, frames, _ = queries.shape
    size = allowed.allowed.shape[-2]
    queries, keys, values = (_blocks(tensor.transpose(1, 2), size) for tensor in (queries, keys, values))
    queries = queries.flatten(0, 1)
    keys, values = (_with_neighbours(tensor, allowed.reach) for tensor in (keys, values))
    attended = functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (queries, keys, values)), attn_mask=allowed.allowed, dropout_p=dropout
    )
    return rearrange(attended, "(b c) n s d -> b n (c s) d", b=rows)[:, :, :frames]


def _blocks(tensor: Tensor, size: int) -> Tensor:
    """[B, T, ...] -> [B, blocks, size, ...], the last block filled up with zeros."""
    missing = -tensor.shape[1] % size
    tensor = functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, missing))
    return tensor.unflatten(1, (-1, size))


def _with_neighbours(blocks: Tensor, reach: int) -> Tensor:
    """[B, blocks, S, ...] -> [B · blocks, S + 2 · reach, ...]: what lies around each block; zeros beyond the row's ends."""
    size, below = blocks.shape[2], (0, 0) * (blocks.ndim - 2)
    before = functional.pad(blocks[:, :-1, size - reach :], (*below, 1, 0))
    after = functional.pad(blocks[:, 1:, :reach], (*below, 0, 1))
    return torch.cat((before, blocks, after), dim=2).flatten(0, 1)
