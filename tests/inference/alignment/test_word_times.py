"""Frames become seconds: the samples that a frame stands for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.inference.alignment.word_times import Word, frame_seconds, words_in_seconds
from lact_asr.inference.decoding import TimedWord
from lact_asr.wav2vec2_encoder import Wav2Vec2FrontEnd


@pytest.fixture(params=[5, 8])
def front_end(request) -> Wav2Vec2FrontEnd:
    config = SimpleNamespace(
        conv_dim=(4,) * 7,
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_bias=True,
        feat_extract_norm="layer",
        feat_extract_activation="gelu",
        encoder_target_ds_factor=request.param,
    )
    torch.manual_seed(0)
    return Wav2Vec2FrontEnd(config)


def test_words_by_hand(front_end):
    words = words_in_seconds([TimedWord("THE", 0, 3, 0.90004), TimedWord("CAT", 8, 9, 0.5)], front_end)
    if front_end.samples_per_frame == 200:  # 100 samples before the first frame's middle
        assert words == (Word("THE", 0.00625, 0.04375, 0.9), Word("CAT", 0.10625, 0.11875, 0.5))
    else:  # 320 samples a frame, 40 before the first frame's middle
        assert words == (Word("THE", 0.0025, 0.0625, 0.9), Word("CAT", 0.1625, 0.1825, 0.5))


@torch.no_grad()
def test_a_frame_stands_for_the_middle_of_the_samples_that_it_sees(front_end):
    """The middle of a frame's time is the middle of the samples that move it."""
    frame = 5
    clicks = torch.eye(3000)[600:2200]  # the frame lies well within at 200 and at 320 samples a frame
    features, silence = front_end(clicks)[0], front_end(torch.zeros(1, 3000))[0]
    moved = (features[:, frame] != silence[0, frame]).any(-1).nonzero() + 600
    middle = (frame_seconds(frame, front_end) + frame_seconds(frame + 1, front_end)) / 2 * SAMPLE_RATE_HZ
    assert middle == pytest.approx((moved.min() + moved.max() + 1).item() / 2)


def test_times_lie_within_the_recording(front_end):
    for samples in (400, 401, 719, 720, 16_000):
        frames = int(front_end.frame_lengths(torch.tensor(samples)))
        assert 0 <= frame_seconds(0, front_end) < frame_seconds(frames, front_end) <= samples / SAMPLE_RATE_HZ
