"""The front end's first lesson: targets that are spectrograms of what frames hear, an error that falls, a loader put back."""

import math

import pytest
import torch

from lact_asr import HybridASRConfig
from lact_asr.data.batching import make_dataloader
from lact_asr.data.corpora import load_corpus
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary
from lact_asr.training.front_end_warm_start import log_mel_spectrogram, warm_start_front_end
from lact_asr.wav2vec2_encoder import Wav2Vec2FrontEnd


def test_spectrogram_has_a_row_for_each_frame_and_its_peak_at_the_tone():
    low, high = (torch.sin(2 * math.pi * hertz * torch.arange(16_000) / 16_000)[None] for hertz in (300.0, 3_000.0))
    mels = log_mel_spectrogram(torch.cat((low, high)), window_samples=400, samples_per_frame=200)
    assert mels.shape == (2, (16_000 - 400) // 200 + 1, 40)
    peaks = mels.argmax(-1)
    assert (peaks[0] == peaks[0, 0]).all()
    assert peaks[0, 0] + 10 < peaks[1, 0]


def test_error_falls_and_the_loader_is_back_at_its_start(corpus_dir):
    torch.manual_seed(0)
    front_end = Wav2Vec2FrontEnd(HybridASRConfig(conv_dim=(16,) * 7, encoder_target_ds_factor=8))
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary())
    batches = make_dataloader(load_corpus(corpus_dir, "train-generated").cuts, processor, 2, shuffle=True)
    before = next(iter(front_end.parameters())).detach().clone()
    errors = [
        warm_start_front_end(front_end, batches, steps, torch.device("cpu"), show_progress=False) for steps in (1, 150)
    ]
    assert errors[1] < 0.5 * errors[0]
    assert not torch.equal(before, next(iter(front_end.parameters())))
    assert batches.state_dict()["epoch"] == batches.state_dict()["batches_done"] == 0


@pytest.mark.parametrize("steps", [0, 2])
def test_the_flag_changes_the_front_end_before_training_and_resuming_does_not_repeat_it(train, steps):
    flags = ("--front_end_warm_start_steps", steps, "--encoder_lr_scale", 0, "--enable_ttt")
    run = train(*flags, "--max_steps", 1)
    plain = train("--encoder_lr_scale", 0, "--enable_ttt", "--max_steps", 1, name="plain")
    name = next(name for name in run.state()["model"] if name.startswith("front_end."))
    started = run.state()["model"][name]
    assert torch.equal(started, plain.state()["model"][name]) == (steps == 0)
    resumed = train(*flags, "--max_steps", 2, "--resume_from_checkpoint")
    assert torch.equal(resumed.state()["model"][name], started)
