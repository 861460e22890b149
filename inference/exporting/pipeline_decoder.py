"""This package's beam search for Transformers' pipeline, with the language model and the weights beside the checkpoint.

import lact_asr.auto
from transformers import pipeline
from lact_asr.inference.exporting.pipeline_decoder import load_pipeline_decoder

recognise = pipeline("automatic-speech-recognition", model=FOLDER, decoder=load_pipeline_decoder(FOLDER))
"""

from __future__ import annotations

import numpy as np

from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.inference.companions import find_language_model, tuned_weights
from lact_asr.inference.decoding import DEFAULT_BEAM_SIZE, Decoder, make_decoder
from lact_asr.processing_hybrid_asr import HybridASRProcessor


class PipelineDecoder:
    """A decoder with the one method that the pipeline asks of pyctcdecode's `BeamSearchDecoderCTC`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def decode_beams(self, logits: np.ndarray) -> list[tuple]:
        """Logits [T, V] of a recording to the best transcript: [(text, None, [(word, (start, end)), …], acoustic score, score)].

        Frames are counted from 0, an end is the frame behind the word's last; scores are in nats.
        """
        best = self.decoder.decode(logits)
        frames = [(word.text, (word.start_frame, word.end_frame)) for word in best.words]
        return [(best.text, None, frames, best.acoustic_score, best.score)]


def load_pipeline_decoder(folder: str, lm_path: str = "auto", **options: float) -> PipelineDecoder:
    """The decoder that the inference command would use for a folder of ``save_pretrained``.

    Args:
        folder: holds the model, and, for ``lm_path`` "auto", its ``lm.arpa`` and tuned weights if there are any.
        lm_path: another language model, or "none".
        options: of `lact_asr.inference.decoding.make_decoder`, as ``beam_size``, ``lm_weight`` and ``word_score``.

    Raises:
        InputError: a language model that cannot be read or does not fit, or an impossible option.
    """
    language_model = find_language_model(lm_path, folder)
    weights = {} if language_model is None else tuned_weights(folder, str(language_model.path))
    return PipelineDecoder(
        make_decoder(
            HybridASRProcessor.from_pretrained(folder).vocabulary,
            HybridASRConfig.from_pretrained(folder).ctc_blank_id,
            language_model=language_model,
            **{"beam_size": DEFAULT_BEAM_SIZE, **weights, **options},
        )
    )
