"""Configuration of the hybrid model: a Wav2Vec2 convolutional front end, LaCT blocks, a CTC head."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from os import PathLike
from pathlib import Path

from transformers import PreTrainedConfig

from lact_asr.errors import InputError
from lact_asr.front_end.architecture import front_end_values
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.ttt_names import FALLBACK_LOSS, HEAD_LOSS, OPTIMIZERS, OUTER_LOSSES, TRAININGS, parse_groups, parse_loss

SAMPLES_PER_HEAD_FRAME = 40  # samples per frame after the first four convolutions, whose strides (5, 2, 2, 2) are fixed


class HybridASRConfig(PreTrainedConfig):
    """All sizes and training-time behaviours of `HybridASRForCTC`.

    Front end: ``conv_dim``, ``conv_kernel``, ``conv_stride`` (the stock strides; the last three are retuned), ``conv_bias``,
    ``feat_extract_norm`` ("layer" or "group"), ``feat_extract_activation``; ``encoder_target_ds_factor`` is the product
    of the last three strides, 1 to 8 (5 gives 200 samples a frame, 80 Hz). With ``use_wav2vec2_encoder`` training starts
    from the front end of ``wav2vec2_model_name``; without it, from random weights of the same architecture.

    Blocks: ``num_hidden_layers``, ``hidden_size``, ``intermediate_size``, ``num_attn_heads``, ``window_size`` (width in
    frames of the attention window, -1 for the whole utterance), ``num_lact_heads``, ``lact_fw_hidden_dim`` (SwiGLU width
    of each head's fast weights), ``lact_chunk_size`` (frames for each fast-weight update, -1 for the whole utterance as
    one chunk), ``lact_update_order`` ("update_then_apply" looks ahead, "apply_then_update" streams),
    ``fast_weight_lr_init``, ``use_muon``, ``use_momentum``, ``w0_w2_low_rank`` (-1 for full rank). Without
    ``update_fast_weights`` the learned initial fast weights are applied as they are; without ``use_fast_weights`` there
    are none, and a block is attention and a feed-forward network.

    Test-time training: ``ttt_loss_type``, ``ttt_steps``, ``ttt_parameters`` and ``ttt_optimizer`` and ``ttt_learning_rate``
    (null: by loss), ``ttt_mask_prob`` of the frames masked in spans of ``ttt_mask_length``, and ``ttt_chunk_size`` (frames
    adapted at a time, -1 for the whole utterance) are the defaults at test time (of the loss: see `default_ttt_loss`). ``ttt_training`` ("none", "joint", "meta")
    prepares the model for it: the self-supervised loss counts ``ttt_loss_weight``, ``ttt_outer_loss`` ("ctc", "word_errors",
    "clean_view") after the step ``ttt_after_weight``, and ``ttt_first_order`` leaves out second derivatives. ``enable_ttt`` gives the model the masked-prediction head.

    Regularisation: ``hidden_dropout``, ``attention_dropout``, ``layerdrop``, ``mask_time_prob`` and
    ``mask_feature_prob`` (SpecAugment on the projected features; time masks come from ``ttt_mask_prob`` where
    ``enable_ttt`` is set, because the same pass serves both losses).

    Raises:
        InputError: a value is impossible; the sentence names the key.
    """

    model_type = "hybrid_asr"
    attribute_map = {  # noqa: RUF012 - the base class declares it so
        "vocab_size": "ctc_vocab_size",
        "pad_token_id": "ctc_blank_id",
        "num_attention_heads": "num_attn_heads",
    }

    # Front end
    use_wav2vec2_encoder: bool = False
    wav2vec2_model_name: str | None = None
    encoder_target_ds_factor: int = 5
    freeze_encoder: bool = False
    encoder_lr_scale: float = 0.1
    conv_dim: tuple[int, ...] | list[int] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernel: tuple[int, ...] | list[int] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] | list[int] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    feat_extract_norm: str = "layer"
    feat_extract_activation: str = "gelu"
    do_normalize: bool = True

    # Blocks
    num_hidden_layers: int = 16
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attn_heads: int = 8
    window_size: int = -1
    rope_theta: float = 10_000.0
    use_fast_weights: bool = True
    update_fast_weights: bool = True
    num_lact_heads: int = 4
    lact_fw_hidden_dim: int = 1536
    lact_chunk_size: int = -1
    lact_update_order: str = "update_then_apply"
    fast_weight_lr_init: float = 0.01
    use_muon: bool = True
    use_momentum: bool = False
    w0_w2_low_rank: int = -1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    # Test-time training
    enable_ttt: bool = False
    ttt_loss_type: str = "masked_prediction"
    ttt_loss_weight: float = 0.5
    ttt_mask_prob: float = 0.15
    ttt_mask_length: int = 10
    ttt_steps: int = 1
    ttt_parameters: str | None = None
    ttt_optimizer: str = "adamw"
    ttt_learning_rate: float | None = None
    ttt_chunk_size: int = -1
    ttt_training: str = "none"
    ttt_after_weight: float = 1.0
    ttt_outer_loss: str = "ctc"
    ttt_first_order: bool = False

    # Regularisation
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layerdrop: float = 0.05
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10

    # CTC
    ctc_vocab_size: int = 32
    ctc_blank_id: int = 0
    ctc_zero_infinity: bool = True

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        for key in ("conv_dim", "conv_kernel", "conv_stride"):
            if isinstance(getattr(self, key), list):  # JSON has no tuples
                setattr(self, key, tuple(getattr(self, key)))
        self.check_values()

    def check_values(self) -> None:
        """What construction does, for a configuration whose keys were set afterwards.

        Raises:
            InputError: a value of the wrong kind or an impossible one; the sentence names the key.
        """
        _check_values(self)

    @property
    def trains_with_clean_views(self) -> bool:
        """Whether training compares each noisy utterance with itself before noise was added."""
        return self.ttt_training == "meta" and self.ttt_outer_loss == "clean_view"

    @property
    def default_ttt_loss(self) -> str:
        """The loss of test-time training that was not told any: ``ttt_loss_type``, or another where that needs a head that the model lacks."""
        needs_head = any(name == HEAD_LOSS for _, name in parse_loss(self.ttt_loss_type))
        prepared = self.enable_ttt or self.ttt_training != "none"  # training gives the head that its loss needs
        return FALLBACK_LOSS if needs_head and not prepared else self.ttt_loss_type

    @property
    def samples_per_frame(self) -> int:
        """Audio samples from one frame of hidden states to the next."""
        return SAMPLES_PER_HEAD_FRAME * self.encoder_target_ds_factor

    @property
    def inputs_to_logits_ratio(self) -> int:
        """`samples_per_frame` under the name by which Transformers' pipeline looks for it."""
        return self.samples_per_frame

    @property
    def frame_rate_hz(self) -> float:
        """Frames of hidden states in one second of 16 kHz audio."""
        return SAMPLE_RATE_HZ / self.samples_per_frame

    @classmethod
    def from_json_file(cls, json_file: str | PathLike) -> HybridASRConfig:
        """Read a configuration file; unlike the base class, refuse keys that do not exist.

        Raises:
            InputError: no such file, not a JSON object, an unknown key, or an impossible value.
        """
        path = Path(json_file)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"There is no configuration file {path}.") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"The configuration file {path} is not readable JSON: {error}.") from None
        if not isinstance(values, dict):
            raise InputError(f"The configuration file {path} must hold one JSON object.")
        return cls.from_values(values, source=str(path))

    @classmethod
    def from_values(cls, values: dict, source: str = "the configuration") -> HybridASRConfig:
        """Build from a plain dictionary, refusing unknown keys and values of the wrong kind.

        Raises:
            InputError: the sentence names the key and where it was found.
        """
        known = {field.name for field in dataclasses.fields(cls)} | {
            "model_type",
            "transformers_version",
            *cls.attribute_map,
        }
        unknown = sorted(key for key in values if key not in known and not key.startswith("_"))
        if unknown:
            raise InputError(f"Unknown configuration key {unknown[0]!r} in {source}; see HybridASRConfig for the keys.")
        if values.get("model_type", cls.model_type) != cls.model_type:
            raise InputError(f"{source} describes a model of type {values['model_type']!r}, not {cls.model_type!r}.")
        try:
            return cls(**{key: value for key, value in values.items() if key != "model_type"})
        except InputError as error:
            raise InputError(f"In {source}: {error}") from None


def _check_values(config: HybridASRConfig) -> None:
    """Refuse what cannot work, before a model is built from it."""
    _check_types(config)
    for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attn_heads", "num_lact_heads",
                "lact_fw_hidden_dim", "ttt_mask_length", "mask_time_length", "mask_feature_length"):  # fmt: skip
        _require(getattr(config, key) >= 1, key, config, "must be at least 1")
    for key in (
        "hidden_dropout",
        "attention_dropout",
        "layerdrop",
        "mask_time_prob",
        "mask_feature_prob",
        "ttt_mask_prob",
    ):
        _require(0 <= getattr(config, key) < 1, key, config, "must be at least 0 and below 1")
    for key in ("window_size", "lact_chunk_size", "w0_w2_low_rank", "ttt_chunk_size"):
        _require(getattr(config, key) == -1 or getattr(config, key) >= 1, key, config, "must be -1 or at least 1")
    for key, parse in (("ttt_loss_type", functools.partial(parse_loss, own=False)), ("ttt_parameters", parse_groups)):
        try:
            _ = getattr(config, key) is None or parse(getattr(config, key))
        except InputError as error:
            raise InputError(f"configuration key {key!r}: {error}") from None
    for key, choices in _CHOICES.items():
        _require(getattr(config, key) in choices, key, config, f"must be one of {', '.join(choices)}")
    _require(1 <= config.encoder_target_ds_factor <= 8, "encoder_target_ds_factor", config, "must be 1 to 8")
    _require(config.ttt_steps >= 0, "ttt_steps", config, "must be at least 0")
    rate = config.ttt_learning_rate
    _require(rate is None or 0 < rate <= 1e30, "ttt_learning_rate", config, "must be above 0 and at most 1e30, or null")
    for key in ("ttt_parameters", "ttt_learning_rate"):
        _require(
            config.ttt_training != "meta" or getattr(config, key) is not None,
            key,
            config,
            "is needed for meta-training",
        )
    for key in ("encoder_lr_scale", "ttt_loss_weight", "ttt_after_weight", "initializer_range"):
        _require(getattr(config, key) >= 0, key, config, "must be at least 0")
    for key in ("fast_weight_lr_init", "rope_theta", "layer_norm_eps"):
        _require(getattr(config, key) > 0, key, config, "must be above 0")
    _require(config.ctc_vocab_size >= 2, "ctc_vocab_size", config, "must be at least 2: the blank and a character")
    _require(0 <= config.ctc_blank_id < config.ctc_vocab_size, "ctc_blank_id", config, "must be below ctc_vocab_size")
    _require(config.hidden_size % config.num_lact_heads == 0, "num_lact_heads", config, "must divide hidden_size")
    _require(
        config.hidden_size % (2 * config.num_attn_heads) == 0, "num_attn_heads", config,
        "must divide hidden_size into heads of even size",
    )  # fmt: skip
    front_end_values(config, source="the configuration")


_CHOICES = {
    "feat_extract_norm": ("layer", "group"),
    "lact_update_order": ("update_then_apply", "apply_then_update"),
    "ttt_optimizer": OPTIMIZERS,
    "ttt_training": tuple(TRAININGS),
    "ttt_outer_loss": tuple(OUTER_LOSSES),
}


def _check_types(config: HybridASRConfig) -> None:
    """Each value must have its default's type (whole numbers pass as floats): JSON makes "16" for 16 easy."""
    for key in HybridASRConfig.__annotations__:
        value, default = getattr(config, key), getattr(HybridASRConfig, key, None)
        if isinstance(default, bool):
            good, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            good, kind = _is_integer(value), "a whole number"
        elif isinstance(default, float):
            good, kind = _is_number(value), "a finite number"
        elif isinstance(default, tuple):
            good = isinstance(value, tuple) and all(_is_integer(entry) and entry >= 1 for entry in value)
            kind = "a list of whole numbers above 0"
        elif isinstance(default, str):
            good, kind = isinstance(value, str), "a name"
        elif key == "ttt_learning_rate":
            good = value is None or _is_number(value)
            kind = "a finite number or null"
        else:
            good, kind = value is None or isinstance(value, str), "a name or null"
        _require(good, key, config, f"must be {kind}")


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, key: str, config: HybridASRConfig, rule: str) -> None:
    if not condition:
        raise InputError(f"configuration key {key!r} is {getattr(config, key)!r} but {rule}.")
