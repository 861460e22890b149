"""Live words: the same whatever the portions, final after pauses, with times from the start of the stream."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from lact_asr.errors import InputError
from lact_asr.inference.decoding import GreedyDecoder
from lact_asr.inference.streaming import StreamingTranscriber, StreamUpdate
from lact_asr.inference.streams.streaming_model import offline_equivalent
from lact_asr.inference.transcribe_stream import main
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary

CHUNK = {"chunk_frames": 16, "window_frames": 8}


def transcriber(model, do_normalize: bool = True, **options) -> StreamingTranscriber:
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary(), do_normalize)
    return StreamingTranscriber(model, processor, **CHUNK, **options)


def transcribe(streaming: StreamingTranscriber, samples: np.ndarray, portion: int) -> list[StreamUpdate]:
    portions = np.split(samples, range(portion, len(samples), portion))
    return [*(streaming.feed(part) for part in portions), streaming.finish()]


@pytest.fixture
def conversation(audio) -> np.ndarray:
    """Float32 [samples]: three turns with pauses of a second."""
    silence = np.zeros(16_000, np.float32)
    return np.concatenate([part for seed in range(3) for part in (audio.make(0.8, seed), silence)])


def test_final_words_are_the_offline_ones_for_the_same_chunks(speaking_model, audio):
    """Without a pause all words become final at the end; nothing is lost, doubled or moved."""
    model = speaking_model()
    samples = audio.make(1.5)
    streaming = transcriber(model, do_normalize=False, endpoint_seconds=5.0)
    *updates, end = transcribe(streaming, samples, 1_000)
    with torch.no_grad():
        logits = offline_equivalent(model, 16, 8)(torch.from_numpy(samples)[None]).logits[0]
    expected = GreedyDecoder(build_vocabulary(), 0).decode(logits.log_softmax(-1))
    assert len(expected.words) > 3
    assert [word.text for word in end.final] == [word.text for word in expected.words]
    assert not any(update.final for update in updates)
    assert any(update.partial for update in updates[:5])
    times = [(word.start_seconds, word.end_seconds) for word in end.final]
    frames = [(word.start_frame, word.end_frame) for word in expected.words]
    np.testing.assert_allclose(times, (320 * np.array(frames) + 40) / 16_000)


def test_words_do_not_depend_on_the_portions(speaking_model, conversation):
    model = speaking_model(feat_extract_norm="group", conv_bias=False)
    finals = []
    for portion in (len(conversation), 4_111, 900):
        updates = transcribe(transcriber(model, longest_seconds=0.7), conversation, portion)
        finals.append([word for update in updates for word in update.final])
    assert len(finals[0]) > 3
    assert finals[0] == finals[1] == finals[2]
    assert finals[0] == sorted(finals[0], key=lambda word: word.start_seconds)


def test_words_become_final_where_nothing_is_spelled(speaking_model, audio):
    """A bias towards the blank wherever the signal is weak stands for a model that hears silence."""
    model = speaking_model()
    streaming = transcriber(model, do_normalize=False, endpoint_seconds=0.3, block_seconds=0.1)
    feed = streaming.streaming.feed
    loud = iter([True] * 10 + [False] * 8 + [True] * 10 + [False] * 8)

    def hushed(values, last=False):
        logits = feed(values, last)
        return logits if next(loud, False) else logits + torch.tensor([50.0] + [0.0] * (logits.shape[1] - 1))

    streaming.streaming.feed = hushed
    updates = transcribe(streaming, audio.make(3.6), 1_600)
    assert [bool(update.final) for update in updates].count(True) == 2
    first, second = (update.final for update in updates if update.final)
    assert first[-1].end_seconds < 1.0 < 1.6 < second[0].start_seconds
    assert updates.index(next(update for update in updates if update.final)) in (12, 13, 14)


def test_latency_and_real_time_factor(speaking_model, audio):
    streaming = transcriber(speaking_model(), block_seconds=0.1)
    assert streaming.latency_seconds == pytest.approx((2 * 4 * 320 + 40) / 16_000 + 0.1)
    assert streaming.real_time_factor == 0.0
    transcribe(streaming, audio.make(0.5), 800)
    assert streaming.audio_seconds == pytest.approx(0.5)
    assert streaming.real_time_factor == pytest.approx(streaming.compute_seconds / 0.5)
    assert streaming.compute_seconds > 0


def test_streams_without_a_frame_and_bad_samples(speaking_model):
    streaming = transcriber(speaking_model())
    assert streaming.feed(np.empty(0)) == StreamUpdate()
    assert streaming.finish() == StreamUpdate()
    with pytest.raises(InputError, match="not finite"):
        streaming.feed(np.array([np.nan]))
    with pytest.raises(InputError, match=r"block_seconds must be a number of 0\.01 or more"):
        transcriber(speaking_model(), block_seconds=0.0)


def test_the_command_prints_final_words_and_what_it_took(saved_checkpoint, audio, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", audio.make(1.0), 16_000)
    flags = ["--checkpoint", str(saved_checkpoint), "--audio_file", str(tmp_path / "a.wav"), "--greedy"]
    assert main(flags) == 2
    assert "give a window (--window_frames)" in capsys.readouterr().err
    assert main([*flags, "--window_frames", "8"]) == 0
    output = capsys.readouterr()
    assert len(output.out) > 20
    assert "1.0 s of audio; a word is decoded at most 0.36 s of audio after it was said; real-time factor" in output.err
    assert main([*flags[:2], "--audio_file", str(tmp_path / "none.wav")]) == 2
    assert "no such audio file" in capsys.readouterr().err
    soundfile.write(tmp_path / "short.wav", audio.make(1.0)[:100], 16_000)
    assert main([*flags[:2], "--audio_file", str(tmp_path / "short.wav")]) == 2
    assert "short.wav is too short: 100 samples" in capsys.readouterr().err
