"""A first lesson for a front end with random weights: tell the log-mel spectrogram of what each frame hears.

From random weights, CTC spends hundreds of steps on a plateau where the outputs know the letters' frequencies and nothing
of the sound: the convolutions carry little of the spectrum yet, and the blocks behind them cannot use what is not there.
Regressing the spectrogram needs no labels and only the front end, so a few hundred cheap steps end the plateau early.
What was measured is in docs/results/demo.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers.audio_utils import mel_filter_bank

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.data.batching import SpeechDataLoader
from lact_asr.wav2vec2_encoder import Wav2Vec2FrontEnd, frames_mask

NUM_MELS = 40
FFT_SAMPLES = 512
LOG_FLOOR = 1e-3  # of the power of normalised samples: quieter than this is not worth learning
MIN_DEVIATION = 0.1  # in nats: a band that hardly changes is not blown up
PEAK_LR = 3e-3
WARMUP_STEPS = 30


def log_mel_spectrogram(input_values: Tensor, window_samples: int, samples_per_frame: int) -> Tensor:
    """Log power in mel bands of the very samples that each front-end frame sees.

    Args:
        input_values: [B, samples] float at 16 kHz.
        window_samples: the front end's receptive field (400), under a Hann window.
        samples_per_frame: its hop.

    Returns:
        [B, T, 40] float32.
    """
    windows = input_values.float().unfold(1, window_samples, samples_per_frame)
    windows = windows * torch.hann_window(window_samples, device=windows.device)
    power = torch.fft.rfft(windows, n=FFT_SAMPLES).abs() ** 2
    bands = mel_filter_bank(FFT_SAMPLES // 2 + 1, NUM_MELS, 50.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, mel_scale="htk")
    return torch.log(power @ torch.from_numpy(bands).to(power) + LOG_FLOOR)


def warm_start_front_end(
    front_end: Wav2Vec2FrontEnd, batches: SpeechDataLoader, steps: int, device: torch.device, show_progress: bool = True
) -> float:
    """Train the front end to predict log-mel spectrograms through a linear layer, which is thrown away.

    Args:
        front_end: changed in place; left on its device.
        batches: training batches; only the audio is used, and the loader is put back to its start.
        steps: optimiser steps (AdamW; linear warm-up over 30 steps to 3e-3, then linear decay to 2 % of it).
        device: where to compute.
        show_progress: show a bar.

    Returns:
        The last step's error, as the share of variance not explained; NaN where no batch could be read.
    """
    readout = nn.Sequential(nn.LayerNorm(front_end.output_dim), nn.Linear(front_end.output_dim, NUM_MELS)).to(device)
    parameters = [*front_end.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.98))
    start, error = batches.state_dict(), float("nan")
    bar = tqdm(range(steps), "warm-starting the front end", disable=not show_progress)
    for step, batch in zip(bar, _endless(batches), strict=False):
        share = min(1.0, (step + 1) / WARMUP_STEPS) * max(0.02, 1 - step / steps)
        optimizer.param_groups[0]["lr"] = PEAK_LR * share
        loss = _spectrogram_loss(front_end, readout, batch, device)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        error = loss.item()
        bar.set_postfix_str(f"error {error:.2f}")
    batches.load_state_dict(start)
    return error


def _endless(batches: SpeechDataLoader) -> Iterator[dict]:
    """Epoch after epoch, until an epoch in which nothing could be read."""
    number = 1
    while number > 0:
        number = 0
        for number, batch in enumerate(batches, start=1):  # noqa: B007 - tells whether there was any
            yield batch


def _spectrogram_loss(front_end: Wav2Vec2FrontEnd, readout: nn.Module, batch: dict, device: torch.device) -> Tensor:
    input_values = batch["input_values"].to(device)
    features, lengths = front_end(input_values, batch["attention_mask"].to(device).sum(-1))
    target = log_mel_spectrogram(input_values, front_end.receptive_field_samples, front_end.samples_per_frame)
    real = frames_mask(lengths, features.shape[1])
    # Each band standardised over the batch: the loss is then the share of variance not explained, 1 at the start.
    deviation, mean = torch.std_mean(target[real], dim=0)
    return functional.mse_loss(readout(features[real]), (target[real] - mean) / deviation.clamp(min=MIN_DEVIATION))
