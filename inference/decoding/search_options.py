"""What can be chosen about a beam search, whatever library does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lact_asr.errors import InputError

DEFAULT_BEAM_SIZE = 50
DEFAULT_LM_WEIGHT = 0.5
DEFAULT_WORD_SCORE = 1.5
DEFAULT_BEAM_THRESHOLD = 10.0
DEFAULT_UNKNOWN_WORD_SCORE = -12.0
DEFAULT_HOT_WORD_WEIGHT = 10.0


@dataclass(frozen=True)
class SearchOptions:
    """Values of a beam search; the scores are in nats.

    Attributes:
        beam_size: hypotheses kept after each frame.
        lm_weight: weight of the language model's log-probability.
        word_score: added for each word; evens out that every word costs the language model's probability.
        beam_threshold: hypotheses this far below the best one are dropped; infinity keeps them.
        token_threshold: tokens below minus this in a frame are not tried, except the frame's best; infinity tries all.
        unknown_word_score: added for each word that the language model does not list.
        n_best: transcripts to give. Above 1, hypotheses that differ in earlier words only are kept apart, which can cost the best one its
            place in a narrow beam.
        hot_words: words (of phrases, each word) to listen for; they count as known to the language model.
        hot_word_weight: added for each hot word, in shares for its beginnings.
        back_end: the library that searches, of `lact_asr.inference.decoder_names.DECODERS`.

    Raises:
        InputError: an impossible value.
    """

    beam_size: int = DEFAULT_BEAM_SIZE
    lm_weight: float = DEFAULT_LM_WEIGHT
    word_score: float = DEFAULT_WORD_SCORE
    beam_threshold: float = DEFAULT_BEAM_THRESHOLD
    token_threshold: float = 5.0
    unknown_word_score: float = DEFAULT_UNKNOWN_WORD_SCORE
    n_best: int = 1
    hot_words: tuple[str, ...] = ()
    hot_word_weight: float = DEFAULT_HOT_WORD_WEIGHT
    back_end: str = "pyctcdecode"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hot_words", tuple(word for phrase in self.hot_words for word in phrase.split()))
        for name in ("beam_size", "n_best"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.beam_threshold > 0 or not self.token_threshold > 0:
            raise InputError(
                "beam_threshold and token_threshold must be above 0: they are distances from the best, in nats"
            )
        for name in ("lm_weight", "word_score", "unknown_word_score", "hot_word_weight"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} must be a finite number, not {getattr(self, name)}")
