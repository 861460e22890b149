"""A word n-gram model's share of a hypothesis' score, as pyctcdecode's beam search asks for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lact_asr.inference.decoding.search_options import SearchOptions
from lact_asr.inference.language_models.language_model import LanguageModel

NATURAL_PER_LOG10 = math.log(10.0)
# kenlm answers -100 for an unknown word where a model has no <unk>; that would forbid such words whatever was heard.
_LOWEST_UNKNOWN_LOG10 = -8.0


class WordScorer:
    """A language model as pyctcdecode's beam search asks it (the methods of its `AbstractLanguageModel`).

    pyctcdecode's own class scores the end of a text without words, or after a space, as one more unknown word, so that silence turns into letters,
    and scales the penalty of unknown words with the language-model weight. Here an ending costs what `</s>` costs, and a beginning that is
    no known word's costs what the unknown word will cost.
    """

    def __init__(self, language_model: LanguageModel, characters: Iterable[str], options: SearchOptions):
        """Characters and hot words (which count as known) are in the language model's spelling."""
        import kenlm

        self._new_state = kenlm.State
        self._model = language_model.model
        self._words = language_model.words
        self._prefixes = language_model.prefixes(characters)
        self.order = language_model.order
        self._options = options
        self._lm_weight_per_log10 = options.lm_weight * NATURAL_PER_LOG10

    def get_start_state(self):
        """State at the start of a sentence."""
        state = self._new_state()
        self._model.BeginSentenceWrite(state)
        return state

    def score_partial_token(self, partial_token: str) -> float:
        """Penalty for an unfinished word that no known word begins with, in nats."""
        return (
            self._options.unknown_word_score
            if self._prefixes is not None and partial_token not in self._prefixes
            else 0.0
        )

    def score(self, prev_state, word: str, is_last_word: bool = False):
        """Score of a finished word (or "" for none) after a state, in nats, and the state after it."""
        state, score = prev_state, 0.0
        if word:
            state = self._new_state()
            log10_probability = self._model.BaseScore(prev_state, word, state)
            score = self._options.word_score
            if word not in (self._words if self._words is not None else self._model):
                log10_probability = max(log10_probability, _LOWEST_UNKNOWN_LOG10)
                score += 0.0 if word in self._options.hot_words else self._options.unknown_word_score
            score += self._lm_weight_per_log10 * log10_probability
        if is_last_word:
            score += self._lm_weight_per_log10 * self._model.BaseScore(state, "</s>", self._new_state())
        return score, state

    def score_text(self, words: Sequence[str]) -> float:
        """Score of a whole text, in nats."""
        state, total = self.get_start_state(), 0.0
        for word in words:
            score, state = self.score(state, word)
            total += score
        return total + self.score(state, "", is_last_word=True)[0]
