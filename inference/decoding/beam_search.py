"""Beam search: what all back ends have in common, and the choice among decoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from lact_asr.errors import InputError
from lact_asr.inference.decoding.alphabet import CTCAlphabet, LogProbs, in_case_of, respell
from lact_asr.inference.decoding.confidence import with_confidence
from lact_asr.inference.decoding.greedy import GreedyDecoder
from lact_asr.inference.decoding.search import Hypothesis, make_search
from lact_asr.inference.decoding.search_options import SearchOptions
from lact_asr.inference.decoding.transcripts import Decoder, Transcript, decode_rows
from lact_asr.inference.language_models.language_model import LanguageModel


class BeamSearchDecoder:
    """Prefix beam search over characters, with an n-gram language model over words if one is given.

    Hypotheses are ranked by log P(text | audio) + lm_weight · ln P_LM(text, </s>) + word_score · words + unknown_word_score · unknown words
    + hot_word_weight · hot words.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], blank_id: int, language_model: LanguageModel | None = None, **options
    ):
        """Set up the search.

        Args:
            vocabulary: token to id, as a Wav2Vec2 tokenizer gives it: `|` is the word delimiter; special tokens are left out.
            blank_id: id of the CTC blank.
            language_model: None ranks by the acoustic model and hot words only; options about words then have no effect.
            options: fields of `SearchOptions`.

        Raises:
            InputError: impossible values, a back end that is not installed, a language model of another vocabulary, hot words that cannot be
                spelt, or a vocabulary without word delimiter together with a language model.
        """
        self.alphabet = CTCAlphabet(vocabulary, blank_id)
        self.options = SearchOptions(**options)
        self.options = dataclasses.replace(
            self.options, hot_words=_spellable(self.options.hot_words, self.alphabet.characters)
        )
        spelling = {}
        if language_model is not None:
            if not self.alphabet.has_delimiter:
                raise InputError("a word language model needs a vocabulary with the word delimiter '|'")
            spelling = language_model.spelling(self.alphabet.characters)
        self._own_spelling = {theirs: own for own, theirs in spelling.items()}
        hot_words = tuple(respell(word, spelling) for word in self.options.hot_words)
        self._search = make_search(
            self.alphabet.respelt(spelling), language_model, dataclasses.replace(self.options, hot_words=hot_words)
        )

    def decode(self, log_probs: LogProbs, length: int | None = None) -> Transcript:
        """Decode one utterance; arguments and `ValueError` as in `CTCAlphabet.prepare`."""
        frames = self.alphabet.prepare(log_probs, length)
        if len(frames) == 0:
            return Transcript()
        kept = self._informative(frames)
        best, *others = (self._transcript(frames, kept, hypothesis) for hypothesis in self._search(frames[kept]))
        return dataclasses.replace(best, alternatives=tuple(others))

    def _informative(self, frames: np.ndarray) -> np.ndarray:
        """Numbers of the frames to search.

        Of a run of frames in which only the blank passes `token_threshold`, the first suffices: it parts equal letters, and the others
        add the same log-probability to every hypothesis.
        """
        others = frames[:, 1:].max(axis=1)
        silent = (others < -self.options.token_threshold) & (frames[:, 0] > others)
        goes_on = np.append(False, silent[1:] & silent[:-1])
        return np.flatnonzero(~goes_on)

    def _transcript(self, frames: np.ndarray, kept: np.ndarray, hypothesis: Hypothesis) -> Transcript:
        words = [
            (respell(word, self._own_spelling), int(kept[start]), int(kept[end - 1]) + 1)
            for word, start, end in hypothesis.words
        ]
        text = " ".join(word for word, _, _ in words)
        blanks = float(np.delete(frames[:, 0], kept).sum())
        timed_words = with_confidence(self.alphabet, frames, words)
        return Transcript(text, hypothesis.score + blanks, hypothesis.acoustic_score + blanks, timed_words)

    def decode_batch(self, log_probs: LogProbs, lengths: Sequence[int] | torch.Tensor) -> list[Transcript]:
        """Decode a padded batch: `log_probs` [B, T, V], `lengths` [B] in frames."""
        return decode_rows(self, log_probs, lengths)


def _spellable(words: Iterable[str], characters: Iterable[str]) -> tuple[str, ...]:
    """Words as an acoustic model spells them: as they are, or in upper or lower case."""
    characters = set(characters)
    spelt = []
    for word in words:
        candidate = in_case_of(word, characters)
        if candidate is None:
            raise InputError(
                f"hot word {word!r} cannot be spelt with the model's characters {''.join(sorted(characters))!r}"
            )
        spelt.append(candidate)
    return tuple(spelt)


def make_decoder(
    vocabulary: Mapping[str, int],
    blank_id: int,
    *,
    beam_size: int = 1,
    language_model: LanguageModel | None = None,
    **search_options,
) -> Decoder:
    """Choose a decoder: greedy for a beam of 1 without language model and hot words, else beam search with the other `SearchOptions`."""
    if beam_size == 1 and language_model is None and not search_options.get("hot_words"):
        return GreedyDecoder(vocabulary, blank_id)
    return BeamSearchDecoder(vocabulary, blank_id, language_model, beam_size=beam_size, **search_options)
