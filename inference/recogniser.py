"""From samples to text: processor, model, test-time training if wanted, decoder."""

from __future__ import annotations

import numpy as np
import torch

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import LoadedCheckpoint
from lact_asr.inference.decoding import Decoder
from lact_asr.inference.evaluation import Hypotheses
from lact_asr.inference.ttt_procedure import TestTimeTrainer, TTTOutcome, TTTSettings


class Recogniser:
    """Transcribes one utterance at a time.

    Args:
        checkpoint: model and processor; the model is moved to ``device``.
        decoder: of `lact_asr.inference.decoding`.
        ttt_settings: None transcribes without test-time training.
        device: where the model runs.
        move_emission_to_cpu: move log-probabilities in one piece before decoding.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        decoder: Decoder,
        ttt_settings: TTTSettings | None = None,
        device: torch.device | str = "cpu",
        move_emission_to_cpu: bool = False,
    ) -> None:
        self.model, self.processor = checkpoint.model.to(device), checkpoint.processor
        self.decoder, self.device, self.move_emission_to_cpu = decoder, torch.device(device), move_emission_to_cpu
        self.trainer = None if ttt_settings is None else TestTimeTrainer(self.model, ttt_settings)
        self.refusals: dict[str, int] = {}

    def __call__(self, samples: np.ndarray) -> Hypotheses:
        """float32 [samples] at 16 kHz -> text, and with TTT also the text without it."""
        input_values = self.processor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_values.to(
            self.device
        )
        if self.trainer is None:
            return Hypotheses(self._decode(self.emission(input_values)))
        outcome = self.trainer.adapt(input_values[0])
        self._count_refusal(outcome)
        before = self._decode(outcome.logits_before.log_softmax(-1))
        after = self._decode(outcome.logits.log_softmax(-1)) if outcome.adapted else before
        return Hypotheses(after, before)

    @torch.no_grad()
    def emission(self, input_values: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [T, V] of one utterance [1, samples], without TTT."""
        return self.model(input_values).logits[0].float().log_softmax(-1)

    def _decode(self, log_probs: torch.Tensor) -> str:
        if self.move_emission_to_cpu:
            log_probs = log_probs.cpu()
        return self.decoder.decode(log_probs).text

    def _count_refusal(self, outcome: TTTOutcome) -> None:
        if not outcome.adapted:
            self.refusals[outcome.reason] = self.refusals.get(outcome.reason, 0) + 1
