"""A stream's logits are those of the whole recording in the same order of chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lact_asr.errors import InputError
from lact_asr.inference.streams.streaming_front_end import RunningMoments, StreamingFrontEnd
from lact_asr.inference.streams.streaming_model import StreamingModel, offline_equivalent

TOLERANCE = {"rtol": 1e-3, "atol": 2e-4}  # of logits between -3 and 3, float32
EXACT = {"rtol": 1e-5, "atol": 1e-6}  # float64, but rotary angles are float32


def stream(model, samples: torch.Tensor, portions: list[int], chunk_frames: int, window_frames: int) -> torch.Tensor:
    streaming = StreamingModel(model, chunk_frames, window_frames)
    *parts, end = samples.split(portions)
    return torch.cat([*(streaming.feed(part) for part in parts), streaming.feed(end, last=True)])


def portions(total: int, seed: int) -> list[int]:
    """Random numbers of samples, from none to half a second, that add up to ``total``."""
    sizes = np.random.default_rng(seed).integers(0, 8_000, size=200) * np.random.default_rng(seed).integers(
        0, 2, size=200
    )
    ends = np.unique(np.append(sizes.cumsum().clip(max=total), total))
    return np.diff(ends, prepend=0).tolist()


@pytest.mark.parametrize("changes", [
    {"use_momentum": True},
    {"use_muon": False, "w0_w2_low_rank": 2},
    {"encoder_target_ds_factor": 5, "num_hidden_layers": 3},
    {"use_fast_weights": False},
    {"update_fast_weights": False},
])  # fmt: skip
def test_streamed_logits_are_the_offline_ones_whatever_the_portions(speaking_model, audio, changes):
    check_that_streaming_equals_offline(speaking_model(**changes), audio, chunk_frames=7, window_frames=5)


@pytest.mark.parametrize(("chunk_frames", "window_frames"), [(16, 8), (1, 2), (100, 1)])
def test_chunks_and_windows_of_any_size(speaking_model, audio, chunk_frames, window_frames):
    check_that_streaming_equals_offline(speaking_model(), audio, chunk_frames, window_frames)


def check_that_streaming_equals_offline(model, audio, chunk_frames: int, window_frames: int) -> None:
    # In float64: chunks of a frame blow float32's rounding up.
    model, samples = model.double(), torch.from_numpy(audio.make(0.7, seed=1)).double()
    with torch.no_grad():
        offline = offline_equivalent(model, chunk_frames, window_frames)(samples[None]).logits[0]
    for sizes in ([len(samples)], portions(len(samples), 1), [701] * 15 + [len(samples) - 15 * 701]):
        torch.testing.assert_close(stream(model, samples, sizes, chunk_frames, window_frames), offline, **EXACT)
    if model.config.use_fast_weights and model.config.update_fast_weights and chunk_frames < 100:
        other = offline_equivalent(model, chunk_frames + 1, window_frames)
        with torch.no_grad():  # the chunks matter, beyond the tolerance
            assert (other(samples[None]).logits[0] - offline).abs().max() > 0.01


def test_logits_come_as_soon_as_their_window_is_there(speaking_model, audio):
    model = speaking_model()
    streaming = StreamingModel(model, 16, 8)
    samples = torch.from_numpy(audio.make(0.7))
    heard = given = 0
    for part in samples.split(320):
        given += len(streaming.feed(part))
        heard += len(part)
        complete = max(0, (heard - 400) // 320 + 1 - 2 * 4)  # two blocks look four frames ahead each
        assert given == complete
    assert streaming.lookahead_seconds == pytest.approx((2 * 4 * 320 + 40) / 16_000)


def test_a_stream_keeps_no_more_the_longer_it_lasts(speaking_model, audio):
    streaming = StreamingModel(speaking_model(), 16, 8)
    samples, kept = torch.from_numpy(audio.make(3.0)), []
    for part in samples.split(4_800):
        streaming.feed(part)
        kept.append(max(block._kept[0].shape[1] for block in streaming.blocks))
    assert max(kept[3:]) <= 4 + 4 + 15 + 1


def test_the_front_end_gives_the_frames_of_the_whole_recording(speaking_model, audio):
    front_end = speaking_model(encoder_target_ds_factor=5).front_end
    samples = torch.from_numpy(audio.make(1.0))
    streaming = StreamingFrontEnd(front_end, 16_000)
    assert streaming.is_exact
    with torch.no_grad():
        frames = torch.cat([streaming(part) for part in samples.split(portions(16_000, 2))], dim=1)
        torch.testing.assert_close(frames, front_end(samples[None])[0], rtol=1e-4, atol=1e-5)


def test_group_norm_takes_the_statistics_so_far(speaking_model, audio):
    """They are the whole recording's once all of it has been heard: a second hearing gives its frames."""
    front_end = speaking_model(feat_extract_norm="group", conv_bias=False).front_end
    samples = torch.from_numpy(audio.make(2.0))
    streaming = StreamingFrontEnd(front_end, 10**9)
    assert not streaming.is_exact
    with torch.no_grad():
        offline = front_end(samples[None])[0]
        at_once = StreamingFrontEnd(front_end, 10**9)(samples)
        torch.testing.assert_close(at_once, offline, rtol=1e-3, atol=1e-4)
        late = torch.cat([streaming(part) for part in samples.split(1_600)], dim=1)
    difference = (late - offline).abs().mean(dim=(0, 2))
    assert difference[-10:].mean() < 0.2 * difference[:10].mean()


def test_running_moments_fade_beyond_their_horizon():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4_000, 3, generator=generator) * torch.tensor([1.0, 2.0, 3.0]) + 5
    moments = RunningMoments(horizon=10_000)
    for part in values.split(37):
        moments.observe(part)
    torch.testing.assert_close(moments.mean, values.double().mean(0))
    torch.testing.assert_close(moments.variance, values.double().var(0, correction=0))
    short = RunningMoments(horizon=200)
    for part in torch.cat([values, values + 10]).split(37):
        short.observe(part)
    torch.testing.assert_close(short.mean, values.double().mean(0) + 10, rtol=0.05, atol=0.0)


def test_attention_to_the_whole_utterance_is_refused(speaking_model):
    model = speaking_model()
    assert model.config.window_size == -1
    with pytest.raises(InputError, match=r"sees the whole utterance \(window_size -1\), which a stream does not have"):
        StreamingModel(model)
    assert StreamingModel(model, window_frames=8).chunk_frames == 100
    with pytest.raises(InputError, match="1 frame or more"):
        StreamingModel(model, chunk_frames=0, window_frames=8)
