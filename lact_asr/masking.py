"""Random span masks over frames and over channels, for SpecAugment and for masked prediction."""

from __future__ import annotations

import torch
from torch import Tensor


def span_mask(
    lengths: Tensor, size: int, probability: float, span: int, generator: torch.Generator | None = None
) -> Tensor:
    """Mask about ``probability`` of each row in spans, in the manner of wav2vec 2.0 (arXiv 2006.11477).

    A row of length n gets round(probability · n / span) spans, at least one where it is longer than a span, at
    starts drawn evenly; spans may overlap, so that the masked share is a little below ``probability``.

    Args:
        lengths: [B] int64, the valid length of each row.
        size: width of the mask, at least the longest row.
        probability: share of each row to mask, 0 to below 1.
        span: length of a span, in frames or channels.
        generator: CPU source of randomness; None takes torch's global one.

    Returns:
        [B, size] bool on the device of ``lengths``; false beyond each row's length. Rows that are not longer than a
        span are not masked: nothing would be left to predict from.
    """
    mask = torch.zeros(len(lengths), size, dtype=torch.bool)
    if probability > 0:
        for row, length in enumerate(lengths.tolist()):
            if length <= span:
                continue
            spans = max(1, round(probability * length / span))
            starts = torch.randint(0, length - span + 1, (spans, 1), generator=generator)
            mask[row, starts + torch.arange(span)] = True
    return mask.to(lengths.device)
