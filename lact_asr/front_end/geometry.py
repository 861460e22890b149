"""Where the frames of a convolutional front end lie among the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FrameGeometry:
    """Frame t sees the samples [``samples_per_frame`` t, ``samples_per_frame`` t + ``receptive_field_samples``)."""

    samples_per_frame: int
    receptive_field_samples: int

    @classmethod
    def of(cls, config: Any) -> FrameGeometry:
        """Of a configuration of the Wav2Vec2 family: ours, or Transformers' with its ``conv_kernel`` and ``conv_stride``.

        The receptive field follows from the stock strides: retuned ones come with dilations that keep it (see
        `lact_asr.front_end.architecture`).
        """
        strides = [math.prod(config.conv_stride[:layer]) for layer in range(len(config.conv_stride))]
        seen = 1 + sum((kernel - 1) * stride for kernel, stride in zip(config.conv_kernel, strides, strict=True))
        return cls(getattr(config, "samples_per_frame", math.prod(config.conv_stride)), seen)
