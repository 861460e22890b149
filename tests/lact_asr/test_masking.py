"""Random span masks: how much they cover, where they lie, and that a seed decides them."""

from __future__ import annotations

import pytest
import torch

from lact_asr.masking import span_mask


def runs(row: list[bool]) -> list[int]:
    """Lengths of the unbroken stretches of true."""
    lengths, current = [], 0
    for value in [*row, False]:
        if value:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


@pytest.mark.parametrize("probability", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("span", [1, 10])
def test_the_share_of_masked_frames(probability, span):
    length = 2_000
    mask = span_mask(torch.full((40,), length), length, probability, span)
    # n spans of length s drawn evenly leave a frame uncovered with probability (1 - s / length) ^ n
    spans = round(probability * length / span)
    expected = 1 - (1 - span / length) ** spans
    assert mask.float().mean().item() == pytest.approx(expected, rel=0.05)  # 80,000 frames, at least 4,000 masked
    assert expected <= probability


@pytest.mark.parametrize("span", [1, 3, 10])
def test_masked_frames_come_in_whole_spans(span):
    mask = span_mask(torch.full((50,), 60), 60, 0.15, span)
    stretches = [length for row in mask.tolist() for length in runs(row)]
    assert min(stretches) >= span
    assert span in stretches


def test_spans_may_start_at_the_first_frame_and_end_at_the_last():
    mask = span_mask(torch.full((2_000,), 12), 12, 0.1, 10)
    assert mask.sum(dim=1).unique().tolist() == [10]
    assert {row.index(True) for row in mask.tolist()} == {0, 1, 2}


def test_lengths_are_respected():
    lengths = torch.tensor([50, 30, 11, 10, 3, 0])
    mask = span_mask(lengths.repeat(20), 64, 0.5, 10)
    for row, length in zip(mask, lengths.repeat(20).tolist(), strict=True):
        assert not row[length:].any()
        assert bool(row.any()) == (length > 10), "a row that is not longer than a span would have nothing left"
        assert not (length > 10 and row[:length].all())


def test_a_row_longer_than_a_span_has_at_least_one():
    assert span_mask(torch.full((30,), 12), 12, 0.01, 10).any(dim=1).all()


def test_probability_zero_masks_nothing():
    assert not span_mask(torch.tensor([100, 5]), 100, 0.0, 10).any()


def test_the_seed_decides():
    lengths = torch.tensor([80, 60])

    def draw(seed: int) -> torch.Tensor:
        return span_mask(lengths, 80, 0.2, 5, generator=torch.Generator().manual_seed(seed))

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(span_mask(lengths, 80, 0.2, 5), first), "without a generator the global one serves"
