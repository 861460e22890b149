"""Beam search by ctc-beam-decoder, a C++ library that searches as pyctcdecode does."""

from __future__ import annotations

import numpy as np

from lact_asr.errors import InputError
from lact_asr.inference.decoding.alphabet import CTCAlphabet
from lact_asr.inference.decoding.kenlm_files import kenlm_file
from lact_asr.inference.decoding.search import Hypothesis
from lact_asr.inference.decoding.search_options import SearchOptions
from lact_asr.inference.decoding.word_scorer import NATURAL_PER_LOG10, WordScorer
from lact_asr.inference.language_models.language_model import LanguageModel


class CTCBeamDecoderSearch:
    """See `lact_asr.inference.decoding.search.Search`.

    It scores the end of a text without words, or after a space, as one more unknown word, and unknown words a little otherwise than `WordScorer`.
    So an utterance ends with a space for all hypotheses alike, and those that are left at its end are ranked by `WordScorer`.
    """

    def __init__(self, alphabet: CTCAlphabet, language_model: LanguageModel | None, options: SearchOptions):
        """Raises `InputError` where ctc-beam-decoder is not installed, or takes a character for a special sign."""
        try:
            from ctc_beam_decoder import BeamSearchDecoder
        except ImportError as error:
            raise InputError(
                "this decoder needs the package ctc-beam-decoder: pip install 'lact-asr[decoders]'"
            ) from error
        self._options, self._scorer = options, None
        if language_model is None:
            self._search = BeamSearchDecoder(alphabet.labels)
        else:
            self._scorer = WordScorer(language_model, alphabet.characters, options)
            self._space = np.full((1, len(alphabet.labels)), -np.inf)
            self._space[0, alphabet.labels.index(" ")] = 0.0
            with kenlm_file(language_model) as path:
                self._search = BeamSearchDecoder(
                    alphabet.labels,
                    kenlm_model_path=path,
                    unigrams=None if language_model.words is None else sorted(language_model.words),
                    alpha=options.lm_weight,
                    beta=options.word_score,
                    # Added as it is to beginnings of unknown words, and times alpha, in base 10, to whole ones.
                    unk_score_offset=options.unknown_word_score / max(1.0, options.lm_weight * NATURAL_PER_LOG10),
                )
        if self._search.blank_id != 0 or self._search.n_columns != len(alphabet.labels):
            raise InputError(
                "ctc-beam-decoder takes a character of this vocabulary for a special sign: choose another decoder"
            )

    def __call__(self, frames: np.ndarray) -> list[Hypothesis]:
        """See `Search`."""
        beams = self._search.decode_beams(
            frames if self._scorer is None else np.concatenate([frames, self._space]),
            beam_width=self._options.beam_size,
            beam_prune_logp=-self._options.beam_threshold,
            token_min_logp=-self._options.token_threshold,
            prune_history=self._scorer is not None and self._options.n_best == 1,
            hotwords=self._options.hot_words,
            hotword_weight=self._options.hot_word_weight,
        )
        if self._scorer is not None:
            beams = sorted((self._rescored(beam) for beam in beams), key=lambda beam: -beam[4])
        return [
            Hypothesis([(word, start, end) for word, (start, end) in words], acoustic_score, score)
            for _, _, words, acoustic_score, score in beams[: self._options.n_best]
        ]

    def _rescored(self, beam: tuple) -> tuple:
        text, state, words, acoustic_score, _ = beam
        spoken = [word for word, _ in words]
        hot = self._options.hot_word_weight * sum(word in self._options.hot_words for word in spoken)
        return text, state, words, acoustic_score, acoustic_score + self._scorer.score_text(spoken) + hot
