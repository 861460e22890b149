"""Rotary positions and the mask of who may attend to whom."""

from __future__ import annotations

import pytest
import torch

from lact_asr.attention import allowed_pairs, rotate


def mask_of(lengths: list[int], frames: int) -> torch.Tensor:
    return torch.arange(frames) < torch.tensor(lengths)[:, None]


# Rotary positions


def test_scores_depend_on_the_distance_only():
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = rotate(query.expand(1, 1, 40, 8), 10_000.0) @ rotate(key.expand(1, 1, 40, 8), 10_000.0).mT
    for distance in (-7, 0, 1, 20):
        diagonal = torch.diagonal(scores[0, 0], offset=distance)
        # 1e-4: the angles are float32 and reach 40 radians, where they are exact to 4e-6
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert (scores[0, 0, 0, :10] - scores[0, 0, 0, 0]).abs().max() > 0.1


def test_each_pair_turns_by_its_own_angle():
    rotated = rotate(torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 6, 4), theta=100.0)[0, 0]
    time = torch.arange(6.0)
    fast, slow = time, time / 10  # t · theta^(-2i/d) for i = 0, 1
    expected = torch.stack([fast.cos(), slow.cos(), fast.sin(), slow.sin()], dim=-1)
    torch.testing.assert_close(rotated, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_lengths_and_dtype_are_kept_and_the_first_frame_stays(dtype):
    tensor = torch.randn(2, 3, 9, 6).to(dtype)
    rotated = rotate(tensor, 10_000.0)
    assert rotated.dtype == dtype
    assert torch.equal(rotated[:, :, 0], tensor[:, :, 0])
    # bfloat16 keeps eight bits
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(rotated.norm(dim=-1), tensor.norm(dim=-1), atol=0, rtol=tolerance)


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
