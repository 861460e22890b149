"""From samples to text: processor, model, test-time training if wanted, decoder."""

from __future__ import annotations

import numpy as np
import torch

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import LoadedCheckpoint
from lact_asr.errors import InputError
from lact_asr.inference.decoding import Decoder
from lact_asr.inference.evaluation import Hypotheses
from lact_asr.inference.ttt_objectives import all_finite
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
        """float32 [samples] at 16 kHz -> text, and with TTT also the text without it.

        Raises:
            InputError: the model's output is not finite.
        """
        if self.trainer is None:
            return Hypotheses(self._decode(self.emission(samples)))
        outcome = self.trainer.adapt(self._input_values(samples)[0])
        self._count_refusal(outcome)
        before = self._decode(_log_probs(outcome.logits_before))
        after = self._decode(_log_probs(outcome.logits)) if outcome.adapted else before
        return Hypotheses(after, before)

    @torch.no_grad()
    def emission(self, samples: np.ndarray) -> torch.Tensor:
        """Log-probabilities [T, V] of one utterance, float32 [samples] at 16 kHz, without TTT."""
        return _log_probs(self.model(self._input_values(samples)).logits[0])

    def _input_values(self, samples: np.ndarray) -> torch.Tensor:
        inputs = self.processor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return inputs.input_values.to(self.device)

    def _decode(self, log_probs: torch.Tensor) -> str:
        if not all_finite(log_probs):
            raise InputError("the model's output for this recording is not finite (NaN or infinity)")
        if self.move_emission_to_cpu:
            log_probs = log_probs.cpu()
        return self.decoder.decode(log_probs).text

    def _count_refusal(self, outcome: TTTOutcome) -> None:
        if not outcome.adapted:
            self.refusals[outcome.reason] = self.refusals.get(outcome.reason, 0) + 1


def _log_probs(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)
