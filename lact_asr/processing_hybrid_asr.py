"""The processor: waveform in, normalised input values out; text in, labels out; and back again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from lact_asr.configuration_hybrid_asr import SAMPLE_RATE_HZ
from lact_asr.errors import InputError
from lact_asr.text import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN, WORD_DELIMITER_TOKEN


class HybridASRProcessor(Wav2Vec2Processor):
    """Transformers' Wav2Vec2 feature extractor and CTC tokenizer, built from a vocabulary.

    Each recording is brought to mean 0 and variance 1 over its own real samples, then padded with zeros.

    Attributes:
        num_outputs: of the model, where the tokenizer may know tokens beyond them; else None.
    """

    num_outputs: int | None = None

    @classmethod
    def from_vocabulary(cls, vocabulary: dict[str, int], do_normalize: bool = True) -> HybridASRProcessor:
        """Build a processor for a model with this vocabulary.

        Args:
            vocabulary: token -> id, 0 .. n-1 each used once, with the special tokens of `lact_asr.text`.
            do_normalize: normalise each recording; what the front end was trained with.

        Raises:
            InputError: ids are missing or doubled, or special tokens are missing.
        """
        check_vocabulary(vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            vocabulary_file = Path(folder) / "vocab.json"
            vocabulary_file.write_text(json.dumps(vocabulary), encoding="utf-8")
            tokenizer = Wav2Vec2CTCTokenizer(
                str(vocabulary_file),
                pad_token=PAD_TOKEN,
                bos_token=BOS_TOKEN,
                eos_token=EOS_TOKEN,
                unk_token=UNKNOWN_TOKEN,
                word_delimiter_token=WORD_DELIMITER_TOKEN,
            )
        feature_extractor = Wav2Vec2FeatureExtractor(
            feature_size=1,
            sampling_rate=SAMPLE_RATE_HZ,
            padding_value=0.0,
            do_normalize=do_normalize,
            return_attention_mask=True,
        )
        return cls(feature_extractor, tokenizer)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id of the model's outputs; the word delimiter is called "|"."""
        tokens = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        delimiter, outputs = self.tokenizer.word_delimiter_token, self.num_outputs
        return {
            WORD_DELIMITER_TOKEN if token == delimiter else token: index
            for token, index in tokens
            if outputs is None or index < outputs
        }

    def encode_text(self, text: str) -> list[int]:
        """Label ids of a normalised transcript."""
        return self.tokenizer(text).input_ids


def check_vocabulary(vocabulary: dict[str, int], size: int | None = None, source: str = "The vocabulary") -> None:
    """Refuse a vocabulary that cannot label the outputs of a model.

    Args:
        vocabulary: token -> id.
        size: the model's ``ctc_vocab_size``, if known.
        source: the subject of error messages.

    Raises:
        InputError: one sentence that says what is wrong.
    """
    ids = list(vocabulary.values())
    # Zero-width joiners, which spell words of Indic scripts, count as not printable.
    if not all(isinstance(token, str) and token.strip("\u200c\u200d").isprintable() for token in vocabulary):
        raise InputError(f"{source} has tokens that are not printable text.")
    if not all(type(index) is int for index in ids) or sorted(ids) != list(range(len(ids))):
        raise InputError(f"{source} must have the ids 0 to {len(ids) - 1}, each used once.")
    missing = [token for token in (PAD_TOKEN, UNKNOWN_TOKEN, WORD_DELIMITER_TOKEN) if token not in vocabulary]
    if missing:
        raise InputError(f"{source} lacks the special token {missing[0]!r}.")
    if size is not None and len(vocabulary) != size:
        raise InputError(
            f"{source} has {len(vocabulary)} entries but the model's output has {size}: they do not belong together."
        )
