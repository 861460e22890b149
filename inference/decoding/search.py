"""What back ends of the beam search have in common, and the choice among them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from lact_asr.errors import InputError
from lact_asr.inference.decoder_names import DECODERS
from lact_asr.inference.decoding.alphabet import CTCAlphabet
from lact_asr.inference.decoding.search_options import SearchOptions
from lact_asr.inference.language_models.language_model import LanguageModel


class Hypothesis(NamedTuple):
    """One result of a search: words as (text, first frame, frame after the last), scores as in `Transcript`."""

    words: list[tuple[str, int, int]]
    acoustic_score: float
    score: float


class Search(Protocol):
    """A back end, made from an alphabet and hot words in the language model's spelling."""

    def __call__(self, frames: np.ndarray) -> list[Hypothesis]:
        """The `n_best` best hypotheses, best first, of float64 [T > 0, U] log-probabilities."""


def make_search(alphabet: CTCAlphabet, language_model: LanguageModel | None, options: SearchOptions) -> Search:
    """Set up `options.back_end`.

    Raises:
        InputError: no such back end, it is not installed, or it cannot do what the options say.
    """
    if options.back_end == "pyctcdecode":
        from lact_asr.inference.decoding.pyctcdecode_search import PyctcdecodeSearch as BackEnd
    elif options.back_end == "ctc-beam-decoder":
        from lact_asr.inference.decoding.ctc_beam_decoder_search import CTCBeamDecoderSearch as BackEnd
    elif options.back_end == "flashlight":
        from lact_asr.inference.decoding.flashlight_search import FlashlightSearch as BackEnd
    else:
        raise InputError(f"decoder {options.back_end!r} is none of {', '.join(DECODERS)}")
    return BackEnd(alphabet, language_model, options)
