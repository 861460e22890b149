"""From CTC log-probabilities to text: greedy, or by beam search with an optional word n-gram model.

All decoders share one interface (`Decoder`). Tokens that are no text (`<s>`, `</s>`, `<unk>` …) are taken out before decoding and the rest of each
frame is renormalised, so that they can neither appear nor waste probability.
"""

from lact_asr.inference.decoding.alphabet import CTCAlphabet, LogProbs, text_ids
from lact_asr.inference.decoding.beam_search import BeamSearchDecoder, make_decoder
from lact_asr.inference.decoding.greedy import GreedyDecoder
from lact_asr.inference.decoding.pool import DecodingPool
from lact_asr.inference.decoding.search_options import (
    DEFAULT_BEAM_SIZE,
    DEFAULT_BEAM_THRESHOLD,
    DEFAULT_HOT_WORD_WEIGHT,
    DEFAULT_LM_WEIGHT,
    DEFAULT_UNKNOWN_WORD_SCORE,
    DEFAULT_WORD_SCORE,
    SearchOptions,
)
from lact_asr.inference.decoding.transcripts import Decoder, TimedWord, Transcript
from lact_asr.inference.decoding.weight_tuning import TuningRow, tune_language_model_weights

__all__ = [
    "DEFAULT_BEAM_SIZE",
    "DEFAULT_BEAM_THRESHOLD",
    "DEFAULT_HOT_WORD_WEIGHT",
    "DEFAULT_LM_WEIGHT",
    "DEFAULT_UNKNOWN_WORD_SCORE",
    "DEFAULT_WORD_SCORE",
    "BeamSearchDecoder",
    "CTCAlphabet",
    "Decoder",
    "DecodingPool",
    "GreedyDecoder",
    "LogProbs",
    "SearchOptions",
    "TimedWord",
    "Transcript",
    "TuningRow",
    "make_decoder",
    "text_ids",
    "tune_language_model_weights",
]
