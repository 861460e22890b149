"""Beam search by flashlight-text, a C++ library: over a lexicon of the language model's words, or over characters without one."""

from __future__ import annotations

import numpy as np

from lact_asr.errors import InputError
from lact_asr.inference.decoding.alphabet import CTCAlphabet
from lact_asr.inference.decoding.greedy import words_of_path
from lact_asr.inference.decoding.kenlm_files import kenlm_file
from lact_asr.inference.decoding.search import Hypothesis
from lact_asr.inference.decoding.search_options import SearchOptions
from lact_asr.inference.decoding.word_scorer import NATURAL_PER_LOG10
from lact_asr.inference.language_models.language_model import LanguageModel

_NEVER = -100.0  # flashlight takes differences of scores, which infinities have not


class FlashlightSearch:
    """See `lact_asr.inference.decoding.search.Search`.

    The language model looks ahead: a word's beginning is scored by the likeliest word that it may become. Words that it does not list are never
    found, so `unknown_word_score` has no effect, nor has `token_threshold`. Without a language model, probabilities of texts that differ in
    spaces at their ends are not summed.
    """

    def __init__(self, alphabet: CTCAlphabet, language_model: LanguageModel | None, options: SearchOptions):
        """Raises `InputError` where flashlight-text is not installed, for hot words, and for a language model without a word list."""
        try:
            from flashlight.lib.text import decoder
        except ImportError as error:
            raise InputError(
                "this decoder needs the package flashlight-text: pip install 'lact-asr[decoders]'"
            ) from error
        if options.hot_words:
            raise InputError("flashlight knows no hot words: choose another decoder, or leave out the hot words")
        self._alphabet, self._options, self._has_words = alphabet, options, language_model is not None
        self._space = alphabet.labels.index(" ") if alphabet.has_delimiter else -1
        self._ending = np.full((int(self._has_words), len(alphabet.labels)), _NEVER)
        if language_model is None:
            search_options = decoder.LexiconFreeDecoderOptions(
                options.beam_size, len(alphabet.labels), options.beam_threshold, 0.0, 0.0, True,
                decoder.CriterionType.CTC,
            )  # fmt: skip
            self._search = decoder.LexiconFreeDecoder(search_options, decoder.ZeroLM(), self._space, 0, [])
        else:
            self._ending[:, self._space] = 0.0
            self._search = self._with_lexicon(decoder, language_model)

    def _with_lexicon(self, decoder, language_model: LanguageModel):
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary

        if language_model.words is None:
            raise InputError(
                f"flashlight needs the words of the language model {language_model.path}, which keeps no list of them: "
                f"put one at {language_model.path}.unigrams.txt, or choose another decoder"
            )
        words = sorted(word for word in language_model.words if self._alphabet.can_spell(word))
        dictionary = Dictionary()
        for word in (*words, "<unk>"):
            dictionary.add_entry(word)
        with kenlm_file(language_model) as path:
            model = KenLM(str(path), dictionary)
        lexicon, start = decoder.Trie(len(self._alphabet.labels), self._space), model.start(False)
        for index, word in enumerate(words):
            _, log10_probability = model.score(start, index)
            lexicon.insert([*self._alphabet.spell(word), self._space], index, log10_probability)
        lexicon.smear(decoder.SmearingMode.MAX)
        options = decoder.LexiconDecoderOptions(
            self._options.beam_size, len(self._alphabet.labels), self._options.beam_threshold,
            self._options.lm_weight * NATURAL_PER_LOG10, self._options.word_score, -np.inf, 0.0, True,
            decoder.CriterionType.CTC,
        )  # fmt: skip
        return decoder.LexiconDecoder(options, lexicon, model, self._space, 0, len(words), [], False)

    def __call__(self, frames: np.ndarray) -> list[Hypothesis]:
        """See `Search`. A space follows the last frame: only a word with its space is whole."""
        emissions = np.maximum(np.concatenate([frames, self._ending]), _NEVER)
        emissions = np.ascontiguousarray(emissions, dtype=np.float32)
        results = self._search.decode(emissions.ctypes.data, *emissions.shape)
        found: dict[str, Hypothesis] = {}  # one text may come several times, by different paths
        for hypothesis in (self._hypothesis(result, len(frames)) for result in results):
            found.setdefault(" ".join(word for word, _, _ in hypothesis.words), hypothesis)
            if len(found) == self._options.n_best:
                break
        return list(found.values())

    def _hypothesis(self, result, frame_count: int) -> Hypothesis:
        path = result.tokens[1 : 1 + frame_count]  # without the signs of start and end, and the space that was added
        words = words_of_path([self._alphabet.labels[index] for index in path])
        if not self._has_words:
            return Hypothesis(words, result.score, result.score)
        # Where no hypothesis could end with a whole word, the last one stays as far as it was spelt.
        score = result.score if result.tokens[1 + frame_count] == self._space else result.score - _NEVER
        share = self._options.lm_weight * NATURAL_PER_LOG10 * result.lmScore + self._options.word_score * len(words)
        return Hypothesis(words, score - share, score)
