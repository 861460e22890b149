"""The model on a stream: logits frame by frame, the same whatever the portions.

Every block keeps the frames that its attention window still needs and the fast weights of the chunks so far. A frame leaves a block
when the right half of its window has come in; its fast weights are those of the chunks before its own (*apply then update*). So the
logits equal, to rounding, those of `offline_equivalent` for the whole recording.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lact_asr.attention import allowed_pairs
from lact_asr.errors import InputError
from lact_asr.fast_weight_ops import fast_weight_apply, row_norms
from lact_asr.inference.streams.streaming_front_end import StreamingFrontEnd
from lact_asr.lact_layer import LaCTLayer, fast_weight_dtype
from lact_asr.modeling_hybrid_asr import HybridASRForCTC, LaCTBlock
from lact_asr.sample_rate import SAMPLE_RATE_HZ

DEFAULT_CHUNK_SECONDS = 2.0
HORIZON_SECONDS = 8.0


def streaming_chunk(model: HybridASRForCTC) -> int:
    """Frames of a chunk of fast weights on a stream: the configured ones, or for whole utterances some two seconds."""
    configured = model.config.lact_chunk_size
    return round(DEFAULT_CHUNK_SECONDS * model.front_end.frame_rate_hz) if configured == -1 else configured


def offline_equivalent(model: HybridASRForCTC, chunk_frames: int, window_frames: int) -> HybridASRForCTC:
    """A model on the same weights that does with whole recordings what a stream does: chunks, *apply then update*, the same window."""
    equivalent = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    config = equivalent.config
    config.lact_chunk_size, config.lact_update_order, config.window_size = (
        chunk_frames,
        "apply_then_update",
        window_frames,
    )
    return equivalent.eval()


class StreamingFastWeights:
    """The fast weights of one layer, which learn whenever a chunk is complete."""

    def __init__(self, layer: LaCTLayer, chunk_frames: int) -> None:
        self.layer, self.chunk_frames = layer, chunk_frames
        initial = layer.fast_weights()
        self.state, self.norms = layer.start(initial), tuple(row_norms(weight) for weight in initial)
        self._chunk, self._frames = (
            [],
            0,
        )  # of the chunk that is not complete: keys, values, learning rates, hidden states

    def __call__(self, hidden: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the layer adds to attention for the next frames: all [1, n, hidden_size]."""
        dtype = fast_weight_dtype(hidden)
        tokens = self.layer.fast_tokens(hidden, queries, keys, values, dtype)
        answers, start = [], 0
        while start < hidden.shape[1]:
            part = slice(start, start + self.chunk_frames - self._frames)
            queries, *rest = (tensor[:, :, part] for tensor in tokens)
            answers.append(fast_weight_apply(self.state.weights, queries))
            if self.layer.config.update_fast_weights:
                self._learn(*rest, hidden[:, part])
            start = part.stop
        return self.layer.gated(torch.cat(answers, dim=2), hidden)

    def _learn(self, *tokens: Tensor) -> None:
        self._chunk.append(tokens)
        self._frames += tokens[-1].shape[1]
        if self._frames == self.chunk_frames:
            keys, values, rates = (torch.cat(parts, dim=2) for parts in list(zip(*self._chunk, strict=True))[:3])
            hidden = torch.cat([tokens[-1] for tokens in self._chunk], dim=1)
            all_real = hidden.new_ones(1, self._frames, dtype=torch.bool)
            self.state = self.layer.update(self.state, keys, values, rates, hidden, all_real, self.norms)
            self._chunk, self._frames = [], 0


class StreamingBlock:
    """A block that gives a frame away as soon as the right half of its attention window is there."""

    def __init__(self, block: LaCTBlock, chunk_frames: int, window_frames: int) -> None:
        self.block, self.layer = block, block.layer
        self.window, self.reach = window_frames, window_frames // 2
        self.fast = StreamingFastWeights(self.layer, chunk_frames) if self.layer.config.use_fast_weights else None
        self._kept: list[Tensor] | None = (
            None  # input, queries, keys, values, fast weights' answers: [1, n, hidden_size]
        )
        self._context = 0  # how many of the kept frames have been given away and are only attended to

    def __call__(self, hidden: Tensor, last: bool) -> Tensor:
        """The next frames of the input, [1, n, hidden_size] -> those of the output that are complete."""
        if hidden.shape[1]:
            self._keep(hidden)
        if self._kept is None:
            return hidden
        frames = self._kept[0].shape[1]
        end = frames if last else frames - self.reach
        if end <= self._context:
            return hidden[:, :0]
        ready, first = slice(self._context, end), max(0, end - self.reach)
        inputs, queries, keys, values, fast = self._kept
        allowed = allowed_pairs(inputs.new_ones(1, frames, dtype=torch.bool), self.window)
        attended = self.layer.attention(queries, keys, values, allowed)[:, ready]
        outputs = inputs[:, ready] + self.layer.output(attended + fast[:, ready])
        self._kept, self._context = [tensor[:, first:] for tensor in self._kept], end - first
        return outputs + self.block.feed_forward(outputs)

    def _keep(self, hidden: Tensor) -> None:
        normed = self.block.layer_norm(hidden)
        projected = self.layer.qkv(normed).chunk(3, dim=-1)
        fast = torch.zeros_like(hidden) if self.fast is None else self.fast(normed, *projected)
        new = [hidden, *projected, fast]
        self._kept = (
            new if self._kept is None else [torch.cat(pair, dim=1) for pair in zip(self._kept, new, strict=True)]
        )


class StreamingModel:
    """`HybridASRForCTC` on a stream, for one speaker or room from beginning to end.

    Args:
        model: in evaluation mode.
        chunk_frames: that the fast weights learn from at a time; None: see `streaming_chunk`.
        window_frames: width of the attention window, centred on the query; None takes the model's.

    Raises:
        InputError: an impossible value, or a model that attends to the whole utterance where no window is given.
    """

    def __init__(
        self, model: HybridASRForCTC, chunk_frames: int | None = None, window_frames: int | None = None
    ) -> None:
        self.model = model
        self.chunk_frames = streaming_chunk(model) if chunk_frames is None else chunk_frames
        self.window_frames = model.config.window_size if window_frames is None else window_frames
        if self.window_frames == -1:
            raise InputError(
                "This model's attention sees the whole utterance (window_size -1), which a stream does not have: "
                "give a window (--window_frames), or train with one."
            )
        if self.chunk_frames < 1 or self.window_frames < 1:
            raise InputError(
                f"Chunk and window need 1 frame or more, not {self.chunk_frames} and {self.window_frames}."
            )
        self.front_end = StreamingFrontEnd(model.front_end, round(HORIZON_SECONDS * SAMPLE_RATE_HZ))
        self.blocks = [StreamingBlock(block, self.chunk_frames, self.window_frames) for block in model.blocks]

    @property
    def lookahead_seconds(self) -> float:
        """What must be heard after the samples that a frame stands for, before its logits are there."""
        front_end = self.model.front_end
        ahead = len(self.blocks) * (self.window_frames // 2) * front_end.samples_per_frame
        return (ahead + (front_end.receptive_field_samples - front_end.samples_per_frame) / 2) / SAMPLE_RATE_HZ

    @torch.inference_mode()
    def feed(self, input_values: Tensor, last: bool = False) -> Tensor:
        """Logits of the frames that are complete now.

        Args:
            input_values: [samples] float, 16 kHz, normalised, any number of them, on the model's device.
            last: the stream ends with these: what waits for the right half of its window goes without it.

        Returns:
            [frames, vocabulary], 0 frames or more.
        """
        features = self.front_end(input_values)
        hidden = self.model.feature_projection(self.model.feature_norm(features))
        for block in self.blocks:
            hidden = block(hidden, last)
        return self.model.ctc_head(self.model.final_norm(hidden))[0]
