"""From samples to text: processor, model, test-time training if wanted, decoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import LoadedCheckpoint
from lact_asr.errors import InputError
from lact_asr.front_end.geometry import FrameGeometry
from lact_asr.inference.alignment.word_times import Word, words_in_seconds
from lact_asr.inference.decoding import CTCAlphabet, Decoder, DecodingPool, TimedWord, Transcript
from lact_asr.inference.evaluation import Recognition
from lact_asr.inference.long_audio.fast_weight_memory import FastWeightMemory
from lact_asr.inference.ttt.choice import adapted_is_likelier
from lact_asr.inference.ttt.objectives import all_finite
from lact_asr.inference.ttt.outcome import TTTOutcome
from lact_asr.inference.ttt.recipes import Recipe
from lact_asr.inference.ttt.scopes import CarriedTrainer, make_trainer
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt.views import Guides
from lact_asr.transformers_ctc import takes_padding
from lact_asr.ttt_parameters import output_features
from lact_asr.wav2vec2_encoder import frames_mask


class Recogniser:
    """Transcribes utterances, one or several at a time.

    Args:
        checkpoint: model and processor; the model is moved to ``device``.
        decoder: of `lact_asr.inference.decoding`.
        ttt_settings: how to adapt; None transcribes without test-time training.
        device: where the model runs.
        move_emission_to_cpu: move log-probabilities in one piece before decoding.
        keep: which adapted transcripts to keep: "always", or those that are "likelier" (`lact_asr.inference.ttt.choice`).
        guides: what some losses and safeguards of test-time training need.
        carry_fast_weights: the decay of a `FastWeightMemory`; None starts every utterance afresh.

    Attributes:
        alphabet: what the model's outputs mean.
        memory: of fast weights; None without ``carry_fast_weights``.
        refusals: reason -> utterances that test-time training left as they were.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        decoder: Decoder,
        ttt_settings: TTTSettings | Recipe | None = None,
        device: torch.device | str = "cpu",
        move_emission_to_cpu: bool = False,
        keep: str = "always",
        guides: Guides = Guides(),  # noqa: B008 - frozen
        carry_fast_weights: float | None = None,
    ) -> None:
        self.model, self.processor = checkpoint.model.to(device), checkpoint.processor
        self.decoder, self.device, self.move_emission_to_cpu = decoder, torch.device(device), move_emission_to_cpu
        self.trainer = None if ttt_settings is None else make_trainer(self.model, ttt_settings, guides)
        self.keep, self.refusals = keep, {}
        self.alphabet = CTCAlphabet(self.processor.vocabulary, self.model.config.pad_token_id)
        self._geometry = FrameGeometry.of(self.model.config)
        self.memory = None if carry_fast_weights is None else FastWeightMemory(self.model, carry_fast_weights)

    @property
    def order_matters(self) -> bool:
        """Whether an utterance's transcript depends on those before it, as test-time training is carried on."""
        return isinstance(self.trainer, CarriedTrainer)

    def __call__(
        self, recordings: Sequence[np.ndarray], speakers: Sequence[str | None] | None = None
    ) -> list[Recognition | InputError]:
        """Transcribe recordings at once; each gets what it gets alone, or after those before it where TTT is carried on.

        Args:
            recordings: float32 [samples] at 16 kHz each.
            speakers: of each, None where unknown; for test-time training that is carried on by speaker.

        Returns:
            For each the text, its words with their times, and with TTT also the text without it; an `InputError` where the model's output is not finite.
        """
        return [answer() for answer in self.start(recordings, speakers)]

    def start(
        self, recordings: Sequence[np.ndarray], speakers: Sequence[str | None] | None = None
    ) -> list[Callable[[], Recognition | InputError]]:
        """Run the model on recordings, and begin to decode where the decoder is a `DecodingPool`.

        Returns:
            For each recording a function, to be called once, that gives its answer of `__call__`.
        """
        if self.memory is not None and self.memory.is_carrying:
            return [self._next_piece(samples) for samples in recordings]
        if self.trainer is None:
            return [self._answer(logits) for logits in self._logits(recordings)]
        input_values, attention_mask = self._batch(recordings)
        outcomes = self.trainer.adapt_batch(input_values, attention_mask, speakers)
        return [self._adapted_answer(outcome) for outcome in outcomes]

    @torch.no_grad()
    def _logits(self, recordings: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """[T, V] of each recording."""
        if takes_padding(self.model):
            input_values, attention_mask = self._batch(recordings)
            output = self.model(input_values, attention_mask=attention_mask)
            rows = zip(output.logits, output.frame_lengths.tolist(), strict=True)
            return [logits[:length] for logits, length in rows]
        return [self.model(self._input_values(samples)).logits[0] for samples in recordings]

    def _batch(self, recordings: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(input_values [B, samples], attention_mask [B, samples], or None where all are equally long)."""
        rows = [self._input_values(samples)[0] for samples in recordings]
        input_values = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = frames_mask(lengths, input_values.shape[1])
        return input_values, None if mask.all() else mask.long()

    @torch.no_grad()
    def _next_piece(self, samples: np.ndarray) -> Callable[[], Recognition | InputError]:
        """The answer for one piece of a recording, with the fast weights that those before it left."""
        output = self.model(self._input_values(samples), fast_weights=self.memory.states)
        self.memory.remember(output.fast_weights)
        return self._answer(output.logits[0])

    def _answer(self, logits: torch.Tensor) -> Callable[[], Recognition | InputError]:
        if not all_finite(logits):
            return _not_finite
        transcript = self._decode(logits)
        return lambda: self._hypotheses(transcript())

    def _adapted_answer(self, outcome: TTTOutcome) -> Callable[[], Recognition | InputError]:
        if not all_finite(outcome.logits_before):
            return _not_finite
        before = self._decode(outcome.logits_before)
        after = self._decode(outcome.logits) if outcome.adapted else None
        return lambda: self._choose(outcome, before(), after and after())

    def _choose(self, outcome: TTTOutcome, before: Transcript, after: Transcript | None) -> Recognition:
        if after is not None and self.keep == "likelier" and not self._is_likelier(before, after, outcome):
            outcome.refuse("the transcript without TTT is likelier")
        if not outcome.adapted:
            self.refusals[outcome.reason] = self.refusals.get(outcome.reason, 0) + 1
            return self._hypotheses(before, before.text, outcome.reason)
        return self._hypotheses(after, before.text)

    def _hypotheses(
        self, transcript: Transcript, without_ttt: str | None = None, refusal: str | None = None
    ) -> Recognition:
        alternatives = tuple(other.text for other in transcript.alternatives)
        return Recognition(transcript.text, without_ttt, refusal, self.in_seconds(transcript.words), alternatives)

    def in_seconds(self, words: Iterable[TimedWord]) -> tuple[Word, ...]:
        """A decoder's words with their times in a recording."""
        return words_in_seconds(words, self._geometry)

    def _is_likelier(self, before: Transcript, after: Transcript, outcome: TTTOutcome) -> bool:
        log_probs = tuple(_log_probs(logits) for logits in (outcome.logits_before, outcome.logits))
        labels = tuple(self.alphabet.token_ids(transcript.text) for transcript in (before, after))
        return adapted_is_likelier(before, after, log_probs, labels, self.model.config.pad_token_id)

    @torch.no_grad()
    def emission(self, samples: np.ndarray) -> torch.Tensor:
        """Log-probabilities [T, V] of one utterance, float32 [samples] at 16 kHz, without TTT."""
        return _log_probs(self.model(self._input_values(samples)).logits[0])

    @torch.no_grad()
    def observe(self, samples: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(features [T, C], hidden states [L, T, D], logits [T, V]) of one utterance, float32 [samples] at 16 kHz, without TTT."""
        with output_features(self.model) as captured:
            output = self.model(self._input_values(samples), output_hidden_states=True)
        if output.hidden_states[0].shape[1] != output.logits.shape[1]:
            raise InputError(f"{type(self.model).__name__} has hidden states of another frame rate than its output.")
        return captured[0][0], torch.cat(output.hidden_states), output.logits[0]

    def _input_values(self, samples: np.ndarray) -> torch.Tensor:
        inputs = self.processor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return inputs.input_values.to(self.device)

    def _decode(self, logits: torch.Tensor) -> Callable[[], Transcript]:
        log_probs = _log_probs(logits)
        if self.move_emission_to_cpu:
            log_probs = log_probs.cpu()
        if isinstance(self.decoder, DecodingPool):
            return self.decoder.submit(log_probs)
        return functools.partial(self.decoder.decode, log_probs)


def _not_finite() -> InputError:
    return InputError("the model's output for this recording is not finite (NaN or infinity)")


def _log_probs(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)
