"""CTC models of Transformers that hear samples: Wav2Vec2, HuBERT, WavLM, Data2VecAudio and their relatives, fine-tuned, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

from lact_asr.configuration_hybrid_asr import SAMPLE_RATE_HZ
from lact_asr.errors import InputError
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor

# Replaces masked frames in training; many checkpoints on the hub lack it.
_ONLY_FOR_TRAINING = "masked_spec_embed"


def load_transformers_ctc(name_or_folder: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, HybridASRProcessor]:
    """A fine-tuned model in float32 and evaluation mode, and its processor.

    ``config.pad_token_id`` of the model is then the CTC blank.

    Args:
        name_or_folder: what ``save_pretrained`` wrote, or a hub name.
        config: of that model.

    Raises:
        InputError: a model of another kind, without an output layer, a vocabulary or a blank, or one that is not for 16 kHz.
        Exception: whatever Transformers and the hub raise where something cannot be read.
    """
    _check_model(name_or_folder, config)
    with _silent_transformers():
        model, loading = AutoModelForCTC.from_pretrained(
            name_or_folder, config=config, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )  # fmt: skip
    if loading["mismatched_keys"]:
        raise InputError(f"The weights in {name_or_folder} do not fit its configuration.")
    missing = sorted(key for key in loading["missing_keys"] if not key.endswith(_ONLY_FOR_TRAINING))
    if missing:
        raise InputError(
            f"{name_or_folder} lacks weights of a {type(model).__name__} ({missing[0]}, …): "
            "only models that were fine-tuned for CTC can transcribe."
        )
    extractor = AutoFeatureExtractor.from_pretrained(name_or_folder, trust_remote_code=False)
    tokenizer = _load_tokenizer(name_or_folder)
    _check_processor(name_or_folder, extractor, tokenizer)
    processor = HybridASRProcessor(extractor, tokenizer)
    processor.num_outputs = config.vocab_size
    _check_characters(name_or_folder, processor)
    model.config.pad_token_id = _find_blank(name_or_folder, processor, config)
    return model.eval(), processor


def takes_padding(model: nn.Module) -> bool:
    """Whether each row of a padded batch gets what it gets alone: several models of Transformers let padding into their convolutions or norms."""
    return isinstance(model, HybridASRForCTC)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Without the report on weights that are missing or left over: what matters of it is said in a sentence."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer, though its class is gone from Transformers, or not named and its kind of model has no default."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception:  # Transformers raises several kinds for this
        return Wav2Vec2CTCTokenizer.from_pretrained(name)


def _check_model(name: str, config: PreTrainedConfig) -> None:
    if type(config) not in MODEL_FOR_CTC_MAPPING or not hasattr(config, "conv_stride"):
        raise InputError(
            f"{name} is a model of the kind {config.model_type}: models of this package can be used, and Transformers' CTC "
            "models that hear samples (Wav2Vec2, HuBERT, WavLM, Data2VecAudio, …)."
        )
    if getattr(config, "add_adapter", False):
        raise InputError(f"{name} has adapter layers after its encoder (add_adapter), which change its frame rate.")


def _check_processor(name: str, extractor: object, tokenizer: PreTrainedTokenizerBase) -> None:
    if not isinstance(extractor, Wav2Vec2FeatureExtractor) or not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
        kinds = f"{type(extractor).__name__} and {type(tokenizer).__name__}"
        raise InputError(f"{name} has {kinds}, where Wav2Vec2FeatureExtractor and Wav2Vec2CTCTokenizer can be used.")
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise InputError(f"{name} hears {extractor.sampling_rate} samples a second, not {SAMPLE_RATE_HZ}.")


def _find_blank(name: str, processor: HybridASRProcessor, config: PreTrainedConfig) -> int:
    """The blank's id: the configuration's padding token, or the tokenizer's where that is none of the outputs or is text.

    Raises:
        InputError: neither will do.
    """
    tokens = {index: token for token, index in processor.vocabulary.items()}
    configured, of_tokenizer = config.pad_token_id, processor.tokenizer.pad_token_id
    is_sound = configured in tokens and (configured == of_tokenizer or len(tokens[configured]) > 1)
    blank = configured if is_sound else of_tokenizer
    if blank not in tokens:
        raise InputError(f"{name} has no padding token among its {config.vocab_size} outputs, which is CTC's blank.")
    return blank


def _check_characters(name: str, processor: HybridASRProcessor) -> None:
    """Special tokens may lie beyond the outputs, as tokenizers add them by themselves; characters may not."""
    characters = {token: index for token, index in processor.tokenizer.get_vocab().items() if len(token) == 1}
    if not characters or max(characters.values()) >= processor.num_outputs:
        missing = (
            f"characters beyond the {processor.num_outputs} outputs of its model" if characters else "no characters"
        )
        raise InputError(f"The vocabulary of {name} holds {missing}.")
