"""Where the learned rates of test-time training start when its step follows the gradient itself (SGD)."""

from __future__ import annotations

import itertools

import torch
from accelerate import Accelerator

from lact_asr.data.batching import SpeechDataLoader
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.training.training_losses import TrainingLosses

BATCHES = 8  # of all processes together


def calibrate_rates(model: HybridASRForCTC, batches: SpeechDataLoader, accelerator: Accelerator) -> None:
    """Let a first SGD step move every tensor by the configured ``ttt_learning_rate`` (root mean square), as AdamW's would.

    Gradients of different tensors differ by orders of magnitude, so no single rate serves all of them. Sets each to
    ``ttt_learning_rate`` over the root mean square of its gradient on a few training batches.

    Args:
        model: with `LearnedRates`, on the accelerator's device.
        batches: training batches of this process; the loader is put back to its start.
        accelerator: every process must take part, and all find the same rates.
    """
    losses, start, device = TrainingLosses(model), batches.state_dict(), accelerator.device
    squares = torch.zeros(len(model.ttt_rates.names), device=device)
    count = torch.zeros((), device=device)
    for batch in itertools.islice(batches, max(1, BATCHES // accelerator.num_processes)):
        gradients = losses.inner_gradients(batch["input_values"].to(device), batch["attention_mask"].to(device))
        squares += torch.stack([gradients[name].square().mean() for name in model.ttt_rates.names])
        count += 1
    batches.load_state_dict(start)
    squares, count = accelerator.reduce((squares, count), reduction="sum")
    if count == 0:
        return  # training will say that nothing can be read
    scales = (squares / count).sqrt()
    with torch.no_grad():  # a tensor without any gradient keeps its rate
        model.ttt_rates.log_rates.sub_(scales.log().masked_fill(scales == 0, 0.0))
