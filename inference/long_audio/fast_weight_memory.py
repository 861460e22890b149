"""Fast weights that outlive an utterance: the next piece of a recording starts from what the last one left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lact_asr.errors import InputError
from lact_asr.fast_weight_state import FastWeightState
from lact_asr.modeling_hybrid_asr import HybridASRForCTC


class FastWeightMemory:
    """Carries fast weights over the pieces of one recording.

    Each piece starts from W₀ + decay · (W − W₀), with W₀ the learned initial weights and W those after the piece before it;
    momentum, where the model uses it, is carried times the decay.

    Args:
        model: whose fast weights.
        decay: above 0, at most 1, which carries all that was learned.

    Attributes:
        is_carrying: whether a recording is in progress; outside of one every utterance starts afresh.
        states: where the next piece starts, one for each block; None: from the learned initial weights.

    Raises:
        InputError: an impossible decay, or a model whose fast weights do not learn.
    """

    def __init__(self, model: HybridASRForCTC, decay: float = 1.0) -> None:
        if not 0 < decay <= 1:
            raise InputError(f"--carry_fast_weights takes a decay above 0 and at most 1, not {decay:g}.")
        if not isinstance(model, HybridASRForCTC) or not (
            model.config.use_fast_weights and model.config.update_fast_weights
        ):
            raise InputError("There is nothing for --carry_fast_weights to carry: this model updates no fast weights.")
        self.model, self.decay = model, decay
        self.is_carrying, self.states = False, None

    @contextmanager
    def over_a_recording(self) -> Iterator[None]:
        """Inside, utterances are the pieces of one recording, in order; it begins and ends without memory."""
        self.is_carrying, self.states = True, None
        try:
            yield
        finally:
            self.is_carrying, self.states = False, None

    @torch.no_grad()
    def remember(self, states: tuple[FastWeightState, ...]) -> None:
        """Take in the states after a piece, of one row each."""
        self.states = tuple(
            self._decayed(state, block.layer.fast_weights())
            for state, block in zip(states, self.model.blocks, strict=True)
        )

    def _decayed(self, state: FastWeightState, initial: tuple[torch.Tensor, ...]) -> FastWeightState:
        weights = tuple(
            start.to(now.dtype).lerp(now, self.decay) for start, now in zip(initial, state.weights, strict=True)
        )
        momentum = None if state.momentum is None else tuple(self.decay * matrix for matrix in state.momentum)
        return FastWeightState(weights, momentum)
