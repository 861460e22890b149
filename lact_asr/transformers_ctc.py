"""CTC models of Transformers that hear samples: Wav2Vec2, HuBERT, WavLM, Data2VecAudio and their relatives, fine-tuned, from a folder or the hub."""

from __future__ import annotations

from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

from lact_asr.configuration_hybrid_asr import SAMPLE_RATE_HZ
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor


def load_transformers_ctc(name_or_folder: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, HybridASRProcessor]:
    """A fine-tuned model in float32 and evaluation mode, and its processor.

    Args:
        name_or_folder: what ``save_pretrained`` wrote, or a hub name.
        config: of that model.

    Raises:
        InputError: a model of another kind, without an output layer or a vocabulary, or one that is not for 16 kHz.
        Exception: whatever Transformers and the hub raise where something cannot be read.
    """
    _check_kind(name_or_folder, config)
    model, loading = AutoModelForCTC.from_pretrained(
        name_or_folder, config=config, dtype="float32", output_loading_info=True
    )
    if loading["missing_keys"] or loading.get("mismatched_keys"):
        missing = sorted(loading["missing_keys"]) or sorted(loading["mismatched_keys"])
        raise InputError(
            f"{name_or_folder} lacks weights of a {type(model).__name__} ({missing[0]}, …): "
            "only models that were fine-tuned for CTC can transcribe."
        )
    processor = HybridASRProcessor(
        AutoFeatureExtractor.from_pretrained(name_or_folder), AutoTokenizer.from_pretrained(name_or_folder)
    )
    _check_processor(name_or_folder, processor, config)
    return model.eval(), processor


def _check_kind(name: str, config: PreTrainedConfig) -> None:
    if type(config) not in MODEL_FOR_CTC_MAPPING or not hasattr(config, "conv_stride"):
        raise InputError(
            f"{name} is a model of the kind {config.model_type}: models of this package can be used, and Transformers' CTC "
            "models that hear samples (Wav2Vec2, HuBERT, WavLM, Data2VecAudio, …)."
        )
    if getattr(config, "add_adapter", False):
        raise InputError(f"{name} has adapter layers after its encoder (add_adapter), which change its frame rate.")


def _check_processor(name: str, processor: HybridASRProcessor, config: PreTrainedConfig) -> None:
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    if not isinstance(extractor, Wav2Vec2FeatureExtractor) or not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
        kinds = f"{type(extractor).__name__} and {type(tokenizer).__name__}"
        raise InputError(f"{name} has {kinds}, where Wav2Vec2FeatureExtractor and Wav2Vec2CTCTokenizer can be used.")
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise InputError(f"{name} hears {extractor.sampling_rate} samples a second, not {SAMPLE_RATE_HZ}.")
    special = tokenizer.all_special_tokens
    ids = [index for token, index in processor.vocabulary.items() if token not in special]
    if not ids or max(ids) >= config.vocab_size:
        missing = "no characters" if not ids else f"characters beyond the {config.vocab_size} outputs of its model"
        raise InputError(f"The vocabulary of {name} holds {missing}.")
