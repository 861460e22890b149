"""The LaCT layer: one QKV projection that serves softmax attention and fast weights updated by Muon."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from lact_asr.attention import BlockWindows, attend, rotary_tables, rotate
from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.fast_weight_ops import chosen_backend, fast_weight_apply, fast_weight_gradients, muon_step, row_norms
from lact_asr.fast_weight_state import FastWeightState, Weights
from lact_asr.vector_lengths import rms_norm, unit_length


class LaCTLayer(nn.Module):
    """Attention and fast weights side by side (large-chunk test-time training, Zhang et al., arXiv 2505.23884).

    Axes: B rows, T frames, h fast-weight heads, d = hidden_size / h, dh = lact_fw_hidden_dim. Without
    ``use_fast_weights`` the layer is attention and output projection, and has no fast-weight parameters.

    Attributes:
        constant_updates: derivatives take what tokens do to the fast weights for constant; see `constant_updates`.
    """

    constant_updates = False

    def __init__(self, config: HybridASRConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        if config.use_fast_weights:
            self.fast_weights = InitialFastWeights(config)
            self.learning_rate_proj = nn.Linear(hidden, 3 * config.num_lact_heads, bias=False)
            self.momentum_proj = nn.Linear(hidden, config.num_lact_heads) if config.use_momentum else None
            self.fast_norm = nn.RMSNorm(hidden // config.num_lact_heads, eps=config.layer_norm_eps)
            self.fast_gate = FastWeightGate(hidden, config.num_lact_heads)
        self.output = nn.Linear(hidden, hidden, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        frame_mask: Tensor,
        allowed_pairs: Tensor | BlockWindows | None = None,
        state: FastWeightState | None = None,
    ) -> tuple[Tensor, FastWeightState | None]:
        """Mix the frames of each row by attention and by fast weights.

        Args:
            hidden_states: [B, T, hidden_size], any float dtype.
            frame_mask: [B, T] bool, true for real frames, which come first in each row; the others change nothing.
            allowed_pairs: of `lact_asr.attention.allowed_pairs`; None lets every frame attend to every frame.
            state: fast weights to start from; None starts from the layer's learned initial weights.

        Returns:
            ([B, T, hidden_size], the state after the last frame; None without fast weights).
        """
        queries, keys, values = self.qkv(hidden_states).chunk(3, dim=-1)
        attended = self.attention(queries, keys, values, allowed_pairs)
        if not self.config.use_fast_weights:
            return self.output(attended), None
        dtype = fast_weight_dtype(hidden_states)
        with torch.autocast(hidden_states.device.type, enabled=False):
            fast, state = self._fast_weights(hidden_states, queries, keys, values, frame_mask, state, dtype)
        return self.output(attended + fast.to(attended.dtype)), state

    def attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, allowed_pairs: Tensor | BlockWindows | None
    ) -> Tensor:
        """Softmax attention among the frames of [B, T, hidden_size] tensors, which `forward` and streams share."""
        config = self.config
        queries, keys, values = (
            rearrange(tensor, "b t (n d) -> b n t d", n=config.num_attn_heads) for tensor in (queries, keys, values)
        )
        dropout = config.attention_dropout if self.training else 0.0
        tables = rotary_tables(queries, config.rope_theta)
        attended = attend(rotate(queries, tables), rotate(keys, tables), values, allowed_pairs, dropout)
        return rearrange(attended, "b n t d -> b t (n d)")

    def _fast_weights(
        self, hidden_states: Tensor, queries: Tensor, keys: Tensor, values: Tensor, frame_mask: Tensor,
        state: FastWeightState | None, dtype: torch.dtype,
    ) -> tuple[Tensor, FastWeightState]:  # fmt: skip
        hidden_states = hidden_states.to(torch.promote_types(dtype, torch.float32))
        queries, keys, values, learning_rates = self.fast_tokens(hidden_states, queries, keys, values, dtype)
        # Fast weights that many chunks add to are kept in 32 bits; where an utterance is one chunk, they are as its tokens.
        one_chunk = state is None and len(self._chunks(queries.shape[2])) == 1
        initial = tuple(weight.to(dtype if one_chunk else hidden_states.dtype) for weight in self.fast_weights())
        state = self.start(initial) if state is None else state.map(lambda tensor: tensor.to(hidden_states.dtype))
        fast, state = self._over_chunks(
            queries, keys, values, learning_rates, hidden_states, frame_mask, initial, state
        )
        return self.gated(fast, hidden_states), state

    def fast_tokens(
        self, hidden_states: Tensor, queries: Tensor, keys: Tensor, values: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the fast weights see of frames: queries, keys and values [B, h, T, d], learning rates [B, h, T, 3].

        Args:
            hidden_states: [B, T, hidden_size], at least 32 bits.
            queries, keys, values: [B, T, hidden_size], parts of the QKV projection.
            dtype: of `fast_weight_dtype`.
        """
        queries, keys, values = (
            rearrange(functional.silu(tensor.to(dtype)), "b t (h d) -> b h t d", h=self.config.num_lact_heads)
            for tensor in (queries, keys, values)
        )
        learning_rates = self._learning_rates(hidden_states)
        if dtype in (torch.float16, torch.bfloat16) and self.config.use_muon:
            # Muon knows only ratios of learning rates. At 0.01, float16 would lose small gradients, and overflow in theirs.
            learning_rates = learning_rates / self.config.fast_weight_lr_init
        return unit_length(queries), unit_length(keys), values, learning_rates

    def gated(self, fast: Tensor, hidden_states: Tensor) -> Tensor:
        """Answers of the fast weights [B, h, T, d], normalised and gated: [B, T, hidden_size]."""
        gate = functional.silu(project(self.fast_gate, hidden_states))
        scale = per_row(self.fast_norm.weight, ndim=1)[:, None, None].to(fast.dtype)
        fast = rms_norm(fast, self.fast_norm.eps) * scale
        return rearrange(fast * gate.mT[..., None].to(fast.dtype), "b h t d -> b t (h d)")

    def _over_chunks(
        self, queries: Tensor, keys: Tensor, values: Tensor, learning_rates: Tensor, hidden_states: Tensor,
        frame_mask: Tensor, initial: Weights, state: FastWeightState,
    ) -> tuple[Tensor, FastWeightState]:  # fmt: skip
        """Update and apply the fast weights chunk by chunk, in the configured order."""
        if not self.config.update_fast_weights:
            return fast_weight_apply(state.weights, queries), state
        chunks = self._chunks(queries.shape[2])
        norms = tuple(row_norms(weight) for weight in initial)
        whole_rows = state.weights is initial and len(chunks) == 1
        outputs = []
        for chunk in chunks:
            updated = self.update(
                state, keys[:, :, chunk], values[:, :, chunk], learning_rates[:, :, chunk],
                hidden_states[:, chunk], frame_mask[:, chunk], norms,
            )  # fmt: skip
            if not whole_rows:  # a row may have ended before this chunk, and keeps its state
                updated = updated.where(frame_mask[:, chunk].any(dim=1), state)
            applied = updated if self.config.lact_update_order == "update_then_apply" else state
            outputs.append(fast_weight_apply(applied.weights, queries[:, :, chunk]))
            state = updated
        return outputs[0] if len(chunks) == 1 else torch.cat(outputs, dim=2), state

    def _chunks(self, frames: int) -> list[slice]:
        """Where each chunk lies. A single one is without bounds, as a compiler would make one program for every bound."""
        size = self.config.lact_chunk_size
        if size == -1 or size >= frames:
            return [slice(None)]
        return [slice(start, start + size) for start in range(0, frames, size)]

    def update(
        self, state: FastWeightState, keys: Tensor, values: Tensor, learning_rates: Tensor, hidden_states: Tensor,
        frame_mask: Tensor, norms: Weights,
    ) -> FastWeightState:  # fmt: skip
        """One step of the fast weights on one chunk, see `fast_tokens`; ``norms`` are the initial weights' `row_norms`."""
        if self.constant_updates:
            keys, values, learning_rates, hidden_states = (
                tokens.detach() for tokens in (keys, values, learning_rates, hidden_states)
            )
        lengths = frame_mask.sum(1)  # real frames come first
        gradients = fast_weight_gradients(state.weights, keys, values, learning_rates, lengths)
        beta = self._momentum_decay(hidden_states, frame_mask)
        weights, momenta = muon_step(
            state.weights, gradients, norms, state.momentum, beta, orthogonalise=self.config.use_muon
        )
        return FastWeightState(weights, momenta)

    def _learning_rates(self, hidden_states: Tensor) -> Tensor:
        """η = softplus(linear(x) + b) with softplus(b) = fast_weight_lr_init: [B, h, T, 3]."""
        rate = self.config.fast_weight_lr_init
        bias = rate + math.log(-math.expm1(-rate))  # log(exp(rate) - 1) without overflow
        rates = functional.softplus(project(self.learning_rate_proj, hidden_states) + bias)
        return rearrange(rates, "b t (h w) -> b h t w", w=3)

    def _momentum_decay(self, hidden_states: Tensor, frame_mask: Tensor) -> Tensor | None:
        """β = σ(mean over the chunk's real frames of linear(x)): [B, h, 1, 1]."""
        if self.momentum_proj is None:
            return None
        weights = frame_mask.to(hidden_states.dtype)[..., None]
        # Summed before the projection, so that whatever padding holds is never averaged in.
        total = hidden_states.masked_fill(~frame_mask[..., None], 0.0).sum(1)
        return torch.sigmoid(project(self.momentum_proj, total / weights.sum(1).clamp(min=1.0)))[..., None, None]

    def start(self, initial: Weights) -> FastWeightState:
        """The state before the first update."""
        momentum = tuple(torch.zeros_like(weight) for weight in initial) if self.config.use_momentum else None
        return FastWeightState(initial, momentum)


@contextmanager
def constant_updates(model: nn.Module) -> Iterator[None]:
    """Inside, no gradient flows through what tokens do to the fast weights of ``model``: a first-order approximation.

    Results stay as they are. Gradients still flow through queries, attention, and from the updated fast weights to the initial ones.
    """
    layers = [module for module in model.modules() if isinstance(module, LaCTLayer)]
    before = [layer.constant_updates for layer in layers]
    try:
        for layer in layers:
            layer.constant_updates = True
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.constant_updates = value


def fast_weight_dtype(hidden_states: Tensor) -> torch.dtype:
    """What the fast-weight path computes in: float32 (float64 for float64), or 16 bits where Triton's kernels take them.

    In plain PyTorch, Newton-Schulz and sums over hundreds of tokens lose too much in 16 bits. The Triton kernels sum in float32.
    """
    if hidden_states.dtype == torch.float64:
        return torch.float64
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
    in_16_bits = dtype in (torch.float16, torch.bfloat16) and chosen_backend(hidden_states) == "triton"
    return dtype if in_16_bits else torch.float32


def project(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """``linear`` of [B, ..., in] in the precision of its inputs, whatever precision the weights are kept in.

    Its bias may be [B, out], a copy for each row (test-time training).
    """
    weight, bias = linear.weight.to(inputs.dtype), None if linear.bias is None else linear.bias.to(inputs.dtype)
    if bias is None or bias.ndim == 1:
        return functional.linear(inputs, weight, bias)
    return functional.linear(inputs, weight) + bias.view(len(bias), *(1,) * (inputs.ndim - 2), -1)


def per_row(parameter: Tensor, ndim: int) -> Tensor:
    """A parameter of ``ndim`` dimensions as [1, ...]; a copy of it for each of B rows stays [B, ...]."""
    return parameter if parameter.ndim > ndim else parameter[None]


class FastWeightGate(nn.Linear):
    """The projection before the gate's SiLU; its bias starts at 1: SiLU(0) = 0 would shut the fast weights out at first."""


class InitialFastWeights(nn.Module):
    """The learned fast weights that every utterance starts from.

    ``w0_w2_low_rank`` of -1 keeps W0 and W2 as full matrices; a rank r > 0 keeps them as products of [dh, r] and [r, d].
    """

    def __init__(self, config: HybridASRConfig) -> None:
        super().__init__()
        heads, width = config.num_lact_heads, config.lact_fw_hidden_dim
        head_dim, rank = config.hidden_size // heads, config.w0_w2_low_rank
        self.low_rank = rank > 0
        self.w1 = nn.Parameter(torch.empty(heads, head_dim, width))
        if self.low_rank:
            self.w0_left, self.w2_left = (nn.Parameter(torch.empty(heads, width, rank)) for _ in range(2))
            self.w0_right, self.w2_right = (nn.Parameter(torch.empty(heads, rank, head_dim)) for _ in range(2))
        else:
            self.w0, self.w2 = (nn.Parameter(torch.empty(heads, width, head_dim)) for _ in range(2))

    def forward(self) -> Weights:
        """W0 [1, h, dh, d], W1 [1, h, d, dh], W2 [1, h, dh, d]; with copies for B rows (test-time training) B instead of 1."""
        if self.low_rank:
            w0, w2 = self.w0_left @ self.w0_right, self.w2_left @ self.w2_right
        else:
            w0, w2 = self.w0, self.w2
        return per_row(w0, 3), per_row(self.w1, 3), per_row(w2, 3)
