"""Beam search by pyctcdecode."""

from __future__ import annotations

import weakref

import numpy as np

from lact_asr.errors import InputError
from lact_asr.inference.decoding.alphabet import CTCAlphabet
from lact_asr.inference.decoding.search import Hypothesis
from lact_asr.inference.decoding.search_options import SearchOptions
from lact_asr.inference.decoding.word_scorer import WordScorer
from lact_asr.inference.language_models.language_model import LanguageModel


class PyctcdecodeSearch:
    """See `lact_asr.inference.decoding.search.Search`."""

    def __init__(self, alphabet: CTCAlphabet, language_model: LanguageModel | None, options: SearchOptions):
        """Raises `InputError` where pyctcdecode is not installed."""
        try:
            from pyctcdecode.alphabet import Alphabet
            from pyctcdecode.decoder import BeamSearchDecoderCTC
        except ImportError as error:
            raise InputError("beam search needs the package pyctcdecode: pip install 'lact-asr[beam]'") from error
        self._options = options
        scorer = None if language_model is None else WordScorer(language_model, alphabet.characters, options)
        # Hypotheses alike in all that a language model still looks at make room for others; without one the sum over paths stays exact.
        self._prune_history = language_model is not None and options.n_best == 1
        # Built from parts: pyctcdecode's build_ctcdecoder guesses at labels' meanings and logs its guesses.
        self._search = BeamSearchDecoderCTC(Alphabet(alphabet.labels, is_bpe=False), scorer)
        # It keeps language models in a dictionary of the class, where they would outlive the decoder.
        self._release = weakref.finalize(self, self._search.cleanup)

    def __call__(self, frames: np.ndarray) -> list[Hypothesis]:
        """See `Search`."""
        beams = self._search.decode_beams(
            frames,
            beam_width=self._options.beam_size,
            beam_prune_logp=-self._options.beam_threshold,
            token_min_logp=-self._options.token_threshold,
            prune_history=self._prune_history,
            hotwords=self._options.hot_words,
            hotword_weight=self._options.hot_word_weight,
        )
        return [
            Hypothesis([(word, start, end) for word, (start, end) in words], float(acoustic_score), float(score))
            for _, _, words, acoustic_score, score in beams[: self._options.n_best]
        ]
