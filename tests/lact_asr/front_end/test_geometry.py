"""Where frames lie, read off a configuration, is where the front ends put them."""

from __future__ import annotations

import pytest
import torch

from lact_asr import HybridASRConfig
from lact_asr.front_end.geometry import FrameGeometry
from lact_asr.wav2vec2_encoder import Wav2Vec2FrontEnd


@pytest.mark.parametrize("factor", [1, 4, 5, 8])
def test_of_our_front_end(factor):
    config = HybridASRConfig(conv_dim=(4,) * 7, encoder_target_ds_factor=factor)
    front_end = Wav2Vec2FrontEnd(config)
    assert FrameGeometry.of(config) == FrameGeometry(front_end.samples_per_frame, front_end.receptive_field_samples)


def test_of_transformers_models(family, transformers_model):
    model = transformers_model(family)
    geometry = FrameGeometry.of(model.config)
    for samples in (400, 719, 720, 16_000):
        frames = int(model._get_feat_extract_output_lengths(torch.tensor(samples)))
        assert frames == 1 + (samples - geometry.receptive_field_samples) // geometry.samples_per_frame
