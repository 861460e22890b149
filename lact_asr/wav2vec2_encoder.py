"""The convolutional front end of the Wav2Vec2 family, from waveform to frames, at a frame rate of one's choice.

Wav2Vec2, HuBERT, WavLM and Data2VecAudio share one architecture, which `lact_asr.front_end.architecture` describes;
their checkpoints are read by `lact_asr.front_end.pretrained`.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from lact_asr.configuration_hybrid_asr import SAMPLE_RATE_HZ, SAMPLES_PER_HEAD_FRAME
from lact_asr.errors import InputError
from lact_asr.front_end.architecture import STOCK_DS_FACTOR, STOCK_STRIDES, front_end_values, retuned_tail
from lact_asr.front_end.channel_norm import channel_norm_over_time
from lact_asr.front_end.convolution import convolution, output_frames
from lact_asr.front_end.pretrained import front_end_config_from_pretrained, read_front_end_weights


def frames_mask(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Which entries lie within each row's length: [B] int64 -> [B, num_frames] bool."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


class FrontEndLayer(GradientCheckpointingLayer):
    """Convolution, normalisation if any, activation, on [B, T, C]; parameters named as in Transformers.

    The convolution is written as matrix products over its taps. Frames then stay in rows, as layer norm wants them, without
    a transposition before and after it.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel: int,
        stride: int,
        dilation: int,
        bias: bool,
        norm: str | None,
        activation: str,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel, stride=stride, dilation=dilation, bias=bias)
        if norm == "layer":
            self.layer_norm = nn.LayerNorm(out_dim)
        elif norm == "group":
            self.layer_norm = nn.GroupNorm(num_groups=out_dim, num_channels=out_dim)
        else:
            self.layer_norm = None
        self.activation = ACT2FN[activation]
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        self.span = dilation * (kernel - 1) + 1  # inputs from the first tap to the last
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as Transformers does: convolutions by Kaiming normal, biases uniform, norms 1 and 0."""
        nn.init.kaiming_normal_(self.conv.weight)
        if self.conv.bias is not None:
            bound = (self.conv.in_channels * self.kernel) ** -0.5
            nn.init.uniform_(self.conv.bias, -bound, bound)
        if self.layer_norm is not None:
            nn.init.ones_(self.layer_norm.weight)
            nn.init.zeros_(self.layer_norm.bias)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Input lengths, int64 of any shape -> output lengths; 0 where the taps do not fit."""
        return output_frames(lengths, self.kernel, self.stride, self.dilation).clamp(min=0)

    def forward(self, hidden: torch.Tensor, input_lengths: torch.Tensor | None) -> torch.Tensor:
        """[B, T, in_dim] with T >= ``span``, and valid input frames [B] (None: all) -> [B, T', out_dim]."""
        hidden, norm = self.convolve(hidden), self.layer_norm
        if isinstance(norm, nn.GroupNorm):
            lengths = None if input_lengths is None else self.output_lengths(input_lengths)
            valid = None if lengths is None else frames_mask(lengths, hidden.shape[1])
            hidden = channel_norm_over_time(hidden, norm.weight, norm.bias, norm.eps, valid)
        elif norm is not None:
            hidden = norm(hidden)  # half-precision inputs, too, have their statistics in float32
        return self.activation(hidden)

    def convolve(self, hidden: torch.Tensor) -> torch.Tensor:
        """The convolution alone, [B, T, in_dim] -> [B, T', out_dim]."""
        product, bias = convolution(hidden, self.conv.weight, self.stride, self.dilation), self.conv.bias
        # [out], or a copy of it for each row: test-time training
        return product if bias is None else product + bias.to(product.dtype)[..., None, :]


class Wav2Vec2FrontEnd(nn.Module):
    """The feature encoder of the Wav2Vec2 family with retuned strides; parameters are named as in Transformers.

    Paper: Baevski et al., wav2vec 2.0, arXiv 2006.11477. Every row of a batch gets the features it gets alone: padding,
    whatever it holds, changes nothing. For ``feat_extract_norm`` "layer", frame t is exactly the stock encoder's frame
    for samples [``samples_per_frame`` t, ``samples_per_frame`` t + 400); for "group", whose first layer normalises over
    the whole utterance, the frames at factor 8 are the stock encoder's for the unpadded utterance.

    Args:
        config: an object with ``conv_dim``, ``conv_kernel``, ``conv_stride`` (must be the stock strides),
            ``conv_bias``, ``feat_extract_norm`` ("layer" or "group"), ``feat_extract_activation`` and
            ``encoder_target_ds_factor`` (1 to 8; without it, as in Transformers' configurations, 8).

    Raises:
        InputError: a value that this architecture cannot have; the message names the key.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        values = front_end_values(config, source="The configuration")
        self.target_ds_factor = getattr(config, "encoder_target_ds_factor", STOCK_DS_FACTOR)
        tail_strides, tail_dilations = retuned_tail(self.target_ds_factor)
        strides = STOCK_STRIDES[:4] + tail_strides
        dilations = (1, 1, 1, 1, *tail_dilations)
        dims = values["conv_dim"]
        norm = values["feat_extract_norm"]
        self.conv_layers = nn.ModuleList(
            FrontEndLayer(
                1 if index == 0 else dims[index - 1],
                dims[index],
                kernel=values["conv_kernel"][index],
                stride=strides[index],
                dilation=dilations[index],
                bias=values["conv_bias"],
                norm=None if norm == "group" and index > 0 else norm,
                activation=values["feat_extract_activation"],
            )
            for index in range(len(STOCK_STRIDES))
        )
        self.output_dim = dims[-1]

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike, target_ds_factor: int = 5) -> Wav2Vec2FrontEnd:
        """The front end, and no more, of a Wav2Vec2, HuBERT, WavLM or Data2VecAudio checkpoint, in float32.

        Args:
            name_or_folder: a folder written by ``save_pretrained`` (base model or one with a head), or a hub name.
            target_ds_factor: the tail's down-sampling, 1 to 8; 5 gives 80 frames a second.

        Raises:
            InputError: no such folder or name, another architecture, or weights unreadable, missing or misshapen.
        """
        retuned_tail(target_ds_factor)  # complain before anything is downloaded
        values = front_end_config_from_pretrained(name_or_folder)
        front_end = cls(SimpleNamespace(**values, encoder_target_ds_factor=target_ds_factor))
        front_end.load_pretrained(name_or_folder)
        return front_end

    def load_pretrained(self, name_or_folder: str | os.PathLike) -> None:
        """Replace all weights by those of a checkpoint of the same architecture; see `from_pretrained`.

        Raises:
            InputError: the checkpoint is unreadable, or a weight is missing, superfluous or of another shape.
        """
        loaded, own = read_front_end_weights(name_or_folder), self.state_dict()
        if missing := sorted(own.keys() - loaded.keys()):
            raise InputError(
                f"The checkpoint {name_or_folder} lacks front-end weights ({len(missing)}: {missing[0]}, …)."
            )
        if unknown := sorted(loaded.keys() - own.keys()):
            raise InputError(
                f"The checkpoint {name_or_folder} has front-end weights that this configuration has no place for, "
                f"first {unknown[0]}; compare conv_bias and feat_extract_norm."
            )
        for key, value in loaded.items():
            if value.shape != own[key].shape:
                raise InputError(
                    f"The checkpoint {name_or_folder} has {key} of shape {tuple(value.shape)}, but conv_dim and "
                    f"conv_kernel ask for {tuple(own[key].shape)}."
                )
        self.load_state_dict(loaded)

    @property
    def samples_per_frame(self) -> int:
        """Samples from the start of one frame to the start of the next."""
        return SAMPLES_PER_HEAD_FRAME * self.target_ds_factor

    @property
    def frame_rate_hz(self) -> float:
        """Frames in one second of 16 kHz audio."""
        return SAMPLE_RATE_HZ / self.samples_per_frame

    @property
    def receptive_field_samples(self) -> int:
        """Samples that one frame sees, and the shortest audio that gives one: 400 with the stock kernels."""
        span, step = 1, 1
        for layer in self.conv_layers:
            span += (layer.span - 1) * step
            step *= layer.stride
        return span

    def frame_lengths(self, sample_lengths: torch.Tensor) -> torch.Tensor:
        """The exact number of frames for each number of samples, int64 of any shape; 0 below 400 samples."""
        lengths = sample_lengths
        for layer in self.conv_layers:
            lengths = layer.output_lengths(lengths)
        return lengths

    def forward(
        self, input_values: torch.Tensor, sample_lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn waveforms into frames.

        Args:
            input_values: [B, samples] float, 16 kHz; what lies past a row's length is ignored, NaN included.
            sample_lengths: [B] int64 valid samples of each row, at most ``samples``; None means all.

        Returns:
            ``features`` [B, T, C], zero past each row's length, and ``lengths`` [B] int64 valid frames. T is the number
            of frames of the padded width, and may be 0.
        """
        batch, num_samples = input_values.shape
        ragged = sample_lengths is not None
        if ragged:
            lengths = sample_lengths.to(input_values.device, torch.int64)
            input_values = input_values.masked_fill(~frames_mask(lengths, num_samples), 0.0)
        else:
            lengths = torch.full((batch,), num_samples, dtype=torch.int64, device=input_values.device)
        if num_samples < self.receptive_field_samples:
            return input_values.new_zeros(batch, 0, self.output_dim), torch.zeros_like(lengths)
        hidden = input_values.to(self.conv_layers[0].conv.weight.dtype)[:, :, None]
        for layer in self.conv_layers:
            hidden = layer(hidden, lengths if ragged else None)
            lengths = layer.output_lengths(lengths)
        if ragged:
            hidden = hidden.masked_fill(~frames_mask(lengths, hidden.shape[1])[:, :, None], 0.0)
        return hidden, lengths
