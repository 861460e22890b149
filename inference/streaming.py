"""Live transcription: samples in any portions come in, words that may still change and final ones go out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from lact_asr.errors import InputError
from lact_asr.front_end.geometry import FrameGeometry
from lact_asr.inference.alignment.word_times import Word, words_in_seconds
from lact_asr.inference.decoding import Decoder, GreedyDecoder, Transcript
from lact_asr.inference.streams.streaming_front_end import RunningMoments
from lact_asr.inference.streams.streaming_model import HORIZON_SECONDS, StreamingModel
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.text import WORD_DELIMITER_TOKEN

_VARIANCE_FLOOR = 1e-7  # of Transformers' feature extractor


@dataclass(frozen=True)
class StreamUpdate:
    """What a portion changed.

    Attributes:
        final: words that became final, with times from the start of the stream.
        partial: the words after the last final one, as they look now.
    """

    final: tuple[Word, ...] = ()
    partial: tuple[Word, ...] = ()


class StreamingTranscriber:
    """Transcribes one stream, from one microphone or file.

    The network's part is `StreamingModel`: chunks *apply then update*, attention with the model's own window. Where the processor
    normalises recordings, samples are normalised by the mean and variance of the stream so far. All is computed in blocks of
    ``block_seconds``, so that words do not depend on the portions, not even by rounding.

    Words become final when nothing has been spelled for ``endpoint_seconds``, or, where nobody pauses, all but the last one when
    ``longest_seconds`` have passed since the last final word. Partial words are decoded greedily, final ones by ``decoder``.

    Args:
        model, processor: of a checkpoint; the model on the device it shall run on.
        decoder: of `lact_asr.inference.decoding`; None decodes greedily.
        chunk_frames, window_frames: see `StreamingModel`.
        block_seconds: how much audio is computed at once: less answers sooner, more costs less.
        endpoint_seconds, longest_seconds: see above.

    Attributes:
        audio_seconds, compute_seconds: how much was heard, and how long that took.

    Raises:
        InputError: a model or values that cannot stream.
    """

    def __init__(
        self,
        model: HybridASRForCTC,
        processor: HybridASRProcessor,
        decoder: Decoder | None = None,
        *,
        chunk_frames: int | None = None,
        window_frames: int | None = None,
        block_seconds: float = 0.2,
        endpoint_seconds: float = 0.6,
        longest_seconds: float = 20.0,
    ) -> None:
        for name, value in (("block", block_seconds), ("endpoint", endpoint_seconds), ("longest", longest_seconds)):
            if not 0.01 <= value < float("inf"):
                raise InputError(f"{name}_seconds must be a number of 0.01 or more, not {value:g}.")
        self.model, self.streaming = model.eval(), StreamingModel(model, chunk_frames, window_frames)
        vocabulary, blank_id = processor.vocabulary, model.config.ctc_blank_id
        self._greedy = GreedyDecoder(vocabulary, blank_id)
        self._geometry = FrameGeometry.of(model.config)
        self.decoder = decoder or self._greedy
        self._silent_ids = torch.tensor([blank_id, vocabulary[WORD_DELIMITER_TOKEN]])
        horizon = round(HORIZON_SECONDS * SAMPLE_RATE_HZ)
        self._moments = RunningMoments(horizon) if processor.feature_extractor.do_normalize else None
        self._block = round(block_seconds * SAMPLE_RATE_HZ)
        rate_hz = model.front_end.frame_rate_hz
        self._endpoint, self._longest = max(1, round(endpoint_seconds * rate_hz)), round(longest_seconds * rate_hz)
        self._samples = np.empty(0, np.float32)  # not computed yet
        self._log_probs = torch.empty(0, model.config.ctc_vocab_size)  # since the last final word
        self._first_frame = 0  # of those
        self.audio_seconds = self.compute_seconds = 0.0

    @property
    def latency_seconds(self) -> float:
        """At most so much audio after a sound, what it spells has been decoded; the time of computing comes on top."""
        return self.streaming.lookahead_seconds + self._block / SAMPLE_RATE_HZ

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing for a second of audio; 0 before there is any."""
        return self.compute_seconds / self.audio_seconds if self.audio_seconds else 0.0

    def feed(self, samples: np.ndarray) -> StreamUpdate:
        """Hear the next samples.

        Args:
            samples: float [n], any number, mono, 16 kHz, nominally within [-1, 1].

        Raises:
            InputError: samples that are not finite.
        """
        started = time.perf_counter()
        samples = np.asarray(samples, dtype=np.float32)
        if not np.isfinite(samples).all():
            raise InputError("the stream holds samples that are not finite numbers (NaN or infinity)")
        self.audio_seconds += len(samples) / SAMPLE_RATE_HZ
        self._samples = np.concatenate([self._samples, samples])
        final = []
        while len(self._samples) >= self._block:
            final += self._hear(self._samples[: self._block])
            self._samples = self._samples[self._block :]
        update = StreamUpdate(tuple(final), self._words(self._greedy.decode(self._log_probs)))
        self.compute_seconds += time.perf_counter() - started
        return update

    def finish(self) -> StreamUpdate:
        """The stream has ended: all its words become final. Nothing can be fed after it."""
        started = time.perf_counter()
        final = [*self._hear(self._samples, last=True), *self._give_away(len(self._log_probs))]
        self._samples = self._samples[:0]
        self.compute_seconds += time.perf_counter() - started
        return StreamUpdate(tuple(final))

    def _hear(self, samples: np.ndarray, last: bool = False) -> tuple[Word, ...]:
        """Compute a block; the words that became final with it."""
        values = torch.from_numpy(samples)
        if self._moments is not None and len(samples):
            self._moments.observe(values[:, None])
            scale = (self._moments.variance + _VARIANCE_FLOOR).rsqrt()
            values = ((values - self._moments.mean) * scale).float()
        logits = self.streaming.feed(values.to(next(self.model.parameters()).device), last)
        self._log_probs = torch.cat([self._log_probs, logits.float().log_softmax(-1).cpu()])
        return self._give_away(self._final_frames())

    def _final_frames(self) -> int:
        """How many of the kept frames will not change their words any more."""
        spelling = (~torch.isin(self._log_probs.argmax(-1), self._silent_ids)).nonzero()
        last_spelling = int(spelling[-1]) if len(spelling) else -1
        pause = len(self._log_probs) - 1 - last_spelling
        if pause >= self._endpoint:
            return last_spelling + 1 + pause // 2
        if len(self._log_probs) < self._longest:
            return 0
        words = self._greedy.decode(self._log_probs).words
        return words[-1].start_frame if len(words) > 1 else len(self._log_probs)

    def _give_away(self, frames: int) -> tuple[Word, ...]:
        """The words of the first of the kept frames, which are kept no longer."""
        words = self._words(self.decoder.decode(self._log_probs[:frames])) if frames else ()
        self._log_probs, self._first_frame = self._log_probs[frames:], self._first_frame + frames
        return words

    def _words(self, transcript: Transcript) -> tuple[Word, ...]:
        """With times from the start of the stream."""
        moved = [
            replace(
                word, start_frame=word.start_frame + self._first_frame, end_frame=word.end_frame + self._first_frame
            )
            for word in transcript.words
        ]
        return words_in_seconds(moved, self._geometry)
