"""The front end on a stream: each convolution keeps the end of what it has heard, normalisations their statistics so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lact_asr.front_end.convolution import output_frames
from lact_asr.wav2vec2_encoder import FrontEndLayer, Wav2Vec2FrontEnd


class RunningMoments:
    """Mean and variance of what has been heard, whose older part fades once it is longer than a horizon.

    Args:
        horizon: values of each channel that the statistics look back on.

    Attributes:
        mean: float64 [channels], once something has been observed.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon, self.count = horizon, 0
        self.mean = self._mean_square = 0.0

    def observe(self, values: Tensor) -> None:
        """Take in the next values, [n, channels]."""
        values = values.double()
        self.count = min(self.count + len(values), self.horizon)
        share = min(1.0, len(values) / self.count)
        self.mean = (1 - share) * self.mean + share * values.mean(0)
        self._mean_square = (1 - share) * self._mean_square + share * values.square().mean(0)

    @property
    def variance(self) -> Tensor:
        """Biased, float64 [channels]."""
        return (self._mean_square - self.mean.square()).clamp(min=0.0)


class StreamingLayer:
    """A layer of the front end that keeps the inputs its next output needs: all outputs are those of the whole stream.

    A layer that normalises over the utterance has no whole stream to do so: it takes the moments of what it has heard.
    """

    def __init__(self, layer: FrontEndLayer, horizon: int) -> None:
        self.layer, self._tail = layer, None
        self.moments = RunningMoments(horizon) if isinstance(layer.layer_norm, nn.GroupNorm) else None

    def __call__(self, hidden: Tensor) -> Tensor:
        """[1, n, in_dim] -> [1, m, out_dim], m of 0 or more."""
        hidden, layer = hidden if self._tail is None else torch.cat([self._tail, hidden], dim=1), self.layer
        outputs = max(0, output_frames(hidden.shape[1], layer.kernel, layer.stride, layer.dilation))
        self._tail = hidden[:, outputs * layer.stride :]
        if outputs == 0:
            return hidden.new_empty(1, 0, layer.conv.out_channels)
        return layer(hidden, None) if self.moments is None else self._normalised_so_far(hidden)

    def _normalised_so_far(self, hidden: Tensor) -> Tensor:
        hidden = self.layer.convolve(hidden)
        self.moments.observe(hidden[0])
        norm = self.layer.layer_norm
        scale = (self.moments.variance + norm.eps).rsqrt() * norm.weight
        hidden = (hidden - self.moments.mean) * scale + norm.bias
        return self.layer.activation(hidden.to(norm.weight.dtype))


class StreamingFrontEnd:
    """Frames as soon as their samples are there.

    For layer-norm front ends they are exactly the frames of the whole recording. A group-norm front end normalises its first layer over
    the whole recording; here over the stream so far, so that frames differ at first and less and less later.

    Args:
        front_end: whose weights are used.
        horizon_samples: that running statistics look back on.
    """

    def __init__(self, front_end: Wav2Vec2FrontEnd, horizon_samples: int) -> None:
        self.output_dim = front_end.output_dim
        first, *others = front_end.conv_layers
        self.layers = [StreamingLayer(first, horizon_samples // first.stride), *(StreamingLayer(o, 0) for o in others)]

    @property
    def is_exact(self) -> bool:
        """Whether its frames are those of the whole recording."""
        return all(layer.moments is None for layer in self.layers)

    def __call__(self, samples: Tensor) -> Tensor:
        """Normalised samples [n] -> the frames that are complete now, [1, m, C]."""
        hidden = samples[None, :, None]
        for layer in self.layers:
            if hidden.shape[1] == 0:
                return hidden.new_empty(1, 0, self.output_dim)
            hidden = layer(hidden)
        return hidden
