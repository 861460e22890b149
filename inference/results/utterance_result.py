"""What became of one utterance: its hypothesis, its errors, its times."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from lact_asr.inference.alignment.word_times import Word
from lact_asr.metrics import ErrorCounts, count_character_errors, count_word_errors
from lact_asr.text import normalise_text

_TEXT_FIELDS = ("reference", "hypothesis", "hypothesis_without_ttt", "message", "ttt_refusal")
_ERROR_FIELDS = ("word_errors", "word_errors_without_ttt", "character_errors", "character_errors_without_ttt")


@dataclass(frozen=True)
class UtteranceResult:
    """One line of a results file.

    Attributes:
        id: name of the utterance or path of the file.
        reference: what was said; None if unknown.
        hypothesis: what was recognised; None if the utterance failed.
        hypothesis_without_ttt: the same before test-time training; None without it.
        word_errors, word_errors_without_ttt, character_errors, character_errors_without_ttt: None where there is nothing to compare.
        audio_seconds: duration of the audio.
        compute_seconds: time from samples to hypothesis, both passes and TTT included.
        message: why the utterance failed; None if it did not.
        ttt_refusal: why the hypothesis is not an adapted one; None where it is, or without test-time training.
        words: those of the hypothesis, with their times; None in results files that were written without them.
        alternatives: the next best hypotheses, best first, where they were wanted.
    """

    id: str
    reference: str | None = None
    hypothesis: str | None = None
    hypothesis_without_ttt: str | None = None
    word_errors: ErrorCounts | None = None
    word_errors_without_ttt: ErrorCounts | None = None
    character_errors: ErrorCounts | None = None
    character_errors_without_ttt: ErrorCounts | None = None
    audio_seconds: float = 0.0
    compute_seconds: float = 0.0
    message: str | None = None
    ttt_refusal: str | None = None
    words: tuple[Word, ...] | None = None
    alternatives: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there is a message instead of a hypothesis."""
        return self.message is not None

    @classmethod
    def scored(
        cls,
        id: str,
        reference: str | None,
        hypothesis: str,
        hypothesis_without_ttt: str | None = None,
        *,
        audio_seconds: float,
        compute_seconds: float,
        ttt_refusal: str | None = None,
        words: tuple[Word, ...] | None = None,
        alternatives: tuple[str, ...] = (),
    ) -> UtteranceResult:
        """Compare hypotheses with the reference, if there is one, both as `normalise_text` spells them: models may write lower case, hyphens or accents."""

        said, heard, heard_without_ttt = (
            None if text is None else normalise_text(text) for text in (reference, hypothesis, hypothesis_without_ttt)
        )

        def errors(count: Callable[[str, str], ErrorCounts], text: str | None) -> ErrorCounts | None:
            return None if said is None or text is None else count(said, text)

        return cls(
            id,
            reference,
            hypothesis,
            hypothesis_without_ttt,
            errors(count_word_errors, heard),
            errors(count_word_errors, heard_without_ttt),
            errors(count_character_errors, heard),
            errors(count_character_errors, heard_without_ttt),
            audio_seconds,
            compute_seconds,
            ttt_refusal=ttt_refusal,
            words=words,
            alternatives=alternatives,
        )

    def json_line(self, word_times: bool) -> str:
        """The result as it stands in a results file, with or without its words."""
        values = asdict(self)
        if not word_times:
            del values["words"]
        if not self.alternatives:
            del values["alternatives"]
        return json_line(values)

    @classmethod
    def from_dict(cls, values: Mapping) -> UtteranceResult:
        """Undo `dataclasses.asdict`; raises TypeError for other keys, and for values of other types."""
        counts = {name: ErrorCounts(**values[name]) for name in _ERROR_FIELDS if values.get(name) is not None}
        words = values.get("words")
        words = None if words is None else tuple(Word(**word) for word in words)
        alternatives = tuple(values.get("alternatives", ()))
        result = cls(**{**values, **counts, "words": words, "alternatives": alternatives})
        result._check_types()
        return result

    def _check_types(self) -> None:
        words = self.words or ()
        texts = [self.id, *(text for name in _TEXT_FIELDS if (text := getattr(self, name)) is not None)]
        texts += [*self.alternatives, *(word.text for word in words)]
        errors = [counts for name in _ERROR_FIELDS if (counts := getattr(self, name)) is not None]
        numbers = [self.audio_seconds, self.compute_seconds, *(n for counts in errors for n in vars(counts).values())]
        numbers += [number for word in words for number in (word.start_seconds, word.end_seconds, word.confidence or 0)]
        if not all(isinstance(text, str) for text in texts) or not all(type(n) in (int, float) for n in numbers):
            raise TypeError("a value of another type")


def json_line(values: Mapping) -> str:
    """One line of a results file."""
    return json.dumps(values, ensure_ascii=False) + "\n"
