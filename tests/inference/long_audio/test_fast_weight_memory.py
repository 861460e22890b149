"""Fast weights carried from piece to piece of a recording, and forgotten after it."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from lact_asr.checkpoint import LoadedCheckpoint
from lact_asr.errors import InputError
from lact_asr.inference.decoding import GreedyDecoder
from lact_asr.inference.long_audio.fast_weight_memory import FastWeightMemory
from lact_asr.inference.recogniser import Recogniser
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary


def recogniser(model, decay: float | None) -> Recogniser:
    vocabulary = build_vocabulary()
    checkpoint = LoadedCheckpoint(model, HybridASRProcessor.from_vocabulary(vocabulary, do_normalize=False))
    return Recogniser(checkpoint, GreedyDecoder(vocabulary, 0), carry_fast_weights=decay)


@pytest.mark.parametrize("decay", [1.0, 0.4])
def test_each_piece_starts_where_the_last_one_ended(speaking_model, audio, decay):
    model = speaking_model(use_momentum=True)
    pieces = [torch.from_numpy(audio.make(0.5, seed))[None] for seed in range(3)]
    memory = FastWeightMemory(model, decay)
    with torch.no_grad(), memory.over_a_recording():
        states = None
        for piece in pieces:
            output = model(piece, fast_weights=memory.states)
            torch.testing.assert_close(output.logits, model(piece, fast_weights=states).logits)
            memory.remember(output.fast_weights)
            states = output.fast_weights  # by hand: W0 + decay (W - W0), momentum times the decay
            for state, block in zip(states, model.blocks, strict=True):
                for now, start in zip(state.weights, block.layer.fast_weights(), strict=True):
                    now.copy_(start + decay * (now - start))
                for matrix in state.momentum:
                    matrix.mul_(decay)
        assert (model(pieces[2]).logits - output.logits).abs().max() > 0.01
    assert memory.states is None


def test_a_recogniser_carries_within_a_recording_only(speaking_model, audio):
    model = speaking_model()
    pieces = [audio.make(0.6, seed) for seed in range(3)]
    fresh, carrying = recogniser(model, None), recogniser(model, 1.0)
    alone = fresh(pieces)
    assert carrying(pieces) == alone
    for _ in range(2):
        with carrying.memory.over_a_recording():
            carried = [answer for piece in pieces for answer in carrying([piece])]
        assert carried[0] == alone[0]
        assert carried[2].text != alone[2].text
    with carrying.memory.over_a_recording():
        assert carrying(pieces) == carried  # one at a time, also in a batch
    assert carrying(pieces) == alone


@pytest.mark.parametrize(("changes", "decay", "sentence"), [
    ({}, 0.0, "a decay above 0 and at most 1, not 0"),
    ({}, float("nan"), "a decay above 0 and at most 1, not nan"),
    ({"use_fast_weights": False}, 1.0, "updates no fast weights"),
])  # fmt: skip
def test_what_cannot_be_carried_is_refused(speaking_model, changes, decay, sentence):
    with pytest.raises(InputError, match=sentence):
        FastWeightMemory(speaking_model(**changes), decay)


def test_the_command_carries_over_the_pieces_of_a_file(transcribe, saved_checkpoint, audio, tmp_path):
    silence = np.zeros(12_000, np.float32)
    turns = [part for seed in range(3) for part in (audio.make(1.5, seed), silence)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(turns), 16_000)
    flags = [
        "--checkpoint",
        saved_checkpoint,
        "--greedy",
        "--audio_file",
        tmp_path / "long.wav",
        "--segment_seconds",
        4,
    ]
    fresh, carried = transcribe(*flags), transcribe(*flags, "--carry_fast_weights", 0.5)
    assert (fresh.code, carried.code) == (0, 0)
    assert fresh.out != carried.out
    refused = transcribe(*flags, "--carry_fast_weights", "--use_ttt")
    assert refused.code == 2
    assert "does not go with --use_ttt" in refused.err
