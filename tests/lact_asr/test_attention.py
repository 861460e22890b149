"""Rotary positions, the mask of who may attend to whom, and windows by blocks."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lact_asr.attention import BlockWindows, allowed_pairs, attend, goes_by_blocks, rotary_tables, rotate


def mask_of(lengths: list[int], frames: int) -> torch.Tensor:
    return torch.arange(frames) < torch.tensor(lengths)[:, None]


# Rotary positions


def rotated(tensor: torch.Tensor, theta: float = 10_000.0) -> torch.Tensor:
    return rotate(tensor, rotary_tables(tensor, theta))


def test_scores_depend_on_the_distance_only():
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = rotated(query.expand(1, 1, 40, 8)) @ rotated(key.expand(1, 1, 40, 8)).mT
    for distance in (-7, 0, 1, 20):
        diagonal = torch.diagonal(scores[0, 0], offset=distance)
        # 1e-4: the angles are float32 and reach 40 radians, where they are exact to 4e-6
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert (scores[0, 0, 0, :10] - scores[0, 0, 0, 0]).abs().max() > 0.1


def test_each_pair_turns_by_its_own_angle():
    turned = rotated(torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 6, 4), theta=100.0)[0, 0]
    time = torch.arange(6.0)
    fast, slow = time, time / 10  # t · theta^(-2i/d) for i = 0, 1
    expected = torch.stack([fast.cos(), slow.cos(), fast.sin(), slow.sin()], dim=-1)
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_lengths_and_dtype_are_kept_and_the_first_frame_stays(dtype):
    tensor = torch.randn(2, 3, 9, 6).to(dtype)
    turned = rotated(tensor)
    assert turned.dtype == dtype
    assert torch.equal(turned[:, :, 0], tensor[:, :, 0])
    # bfloat16 keeps eight bits
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(turned.norm(dim=-1), tensor.norm(dim=-1), atol=0, rtol=tolerance)


def test_derivatives_of_rotation():
    tensor = torch.randn(2, 5, 3, 4, dtype=torch.float64).transpose(1, 2).requires_grad_()
    assert gradcheck(rotated, tensor)
    assert gradgradcheck(rotated, tensor)


# Windows and padding


def test_no_mask_where_everything_is_allowed():
    assert allowed_pairs(mask_of([5, 5], 5), -1) is None


@pytest.mark.parametrize(("window_size", "reach"), [(1, 0), (2, 1), (3, 1), (5, 2), (100, 50)])
def test_windows_are_centred_on_the_query(window_size, reach):
    allowed = allowed_pairs(mask_of([12], 12), window_size)
    assert allowed.shape == (1, 1, 12, 12)
    expected = [[abs(query - key) <= reach for key in range(12)] for query in range(12)]
    assert allowed[0, 0].tolist() == expected


@pytest.mark.parametrize("window_size", [-1, 1, 4])
def test_real_frames_never_see_padding_and_always_see_themselves(window_size):
    lengths, frames = [7, 3, 0, 6], 7
    allowed = allowed_pairs(mask_of(lengths, frames), window_size)
    assert allowed.shape == (4, 1, frames, frames)
    for row, length in enumerate(lengths):
        for query in range(length):
            keys = [
                key for key in range(length) if window_size == -1 or abs(query - key) <= window_size // 2
            ]  # fmt: skip
            assert allowed[row, 0, query].nonzero().flatten().tolist() == keys
            assert query in keys
        assert allowed[row, 0, length:].any(dim=-1).all(), "a query that sees nothing would be NaN"


# Windows by blocks


def dense_pairs(frame_mask: torch.Tensor, window_size: int) -> torch.Tensor:
    position = torch.arange(frame_mask.shape[1])
    near = (position[:, None] - position).abs() <= window_size // 2
    return ((near & frame_mask[:, None, :]) | ~frame_mask[:, :, None])[:, None]


def test_blocks_are_for_rows_much_longer_than_the_window():
    assert not goes_by_blocks(10_000, -1)
    assert goes_by_blocks(129, 32)
    assert not goes_by_blocks(128, 32)
    assert isinstance(allowed_pairs(mask_of([200, 90], 200), 32), BlockWindows)
    assert isinstance(allowed_pairs(mask_of([100, 90], 100), 32), torch.Tensor)


@pytest.mark.parametrize("frames", [159, 160, 161, 399])
@pytest.mark.parametrize("window_size", [1, 16, 33, 100])
def test_blocks_give_what_the_whole_matrix_gives(frames, window_size):
    mask = mask_of([frames, 70, 0, frames - 5], frames)
    allowed = allowed_pairs(mask, window_size)
    if not isinstance(allowed, BlockWindows):
        assert window_size == 100
        pytest.skip(f"{frames} frames are not long beside a window of {window_size}")
    dense = dense_pairs(mask, window_size)
    tensors = [torch.randn(4, 2, frames, 6, dtype=torch.float64) for _ in range(3)]
    weights = torch.randn(4, 2, frames, 6, dtype=torch.float64) * mask[:, None, :, None]  # nobody reads padding
    results = []
    for pairs in (allowed, dense):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        attended = attend(*inputs, pairs)
        assert attended.isfinite().all()
        results.append((attended * mask[:, None, :, None], *torch.autograd.grad((attended * weights).sum(), inputs)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-10)


def test_what_lies_in_padding_changes_nothing():
    mask = mask_of([200, 90], 200)
    tensors = [torch.randn(2, 2, 200, 8) for _ in range(3)]
    others = [torch.where(mask[:, None, :, None], tensor, 1e6) for tensor in tensors]
    real = mask[:, None, :, None].expand(-1, 2, -1, 8)
    allowed = allowed_pairs(mask, 16)
    assert torch.equal(attend(*tensors, allowed)[real], attend(*others, allowed)[real])


def test_blocks_take_longer_rows_in_proportion():
    """The pairs that are computed, for rows of twice the length: twice as many."""
    short, long = (allowed_pairs(mask_of([frames], frames), 32).allowed.numel() for frames in (640, 1280))
    assert long == 2 * short < 1280 * 1280 / 5
