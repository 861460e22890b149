"""What front ends of the Wav2Vec2 family have in common, and what can be changed in them.

Wav2Vec2, HuBERT, WavLM and Data2VecAudio share one architecture: seven convolutions with strides (5, 2, 2, 2, 2, 2, 2),
of which the first four reduce the samples 40 times and the last three, the *tail*, 8 times more (320 samples, 50 Hz).
Here the tail's factor is 1 to 8 and pretrained weights keep their meaning; see `retuned_tail`.
"""

from __future__ import annotations

from typing import Any

from transformers.activations import ACT2FN

from lact_asr.errors import InputError

STOCK_STRIDES = (5, 2, 2, 2, 2, 2, 2)
STOCK_DS_FACTOR = 8  # the product of the last three

_CONFIG_KEYS = (
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
    "feat_extract_activation",
)


def retuned_tail(factor: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Strides and dilations of the last three layers for a total down-sampling of the tail by ``factor``.

    A layer reads its inputs at multiples of its dilation d, in steps of its stride s. With stock strides 2 and new
    strides s_j, whose product is ``factor``, the inputs of tail layer i come prod_{j<i} (2 / s_j) times as densely as
    in the stock encoder, so with

        d_i = prod_{j<i} 2 / s_j

    every tap falls on the very samples it falls on in the stock encoder: the receptive field stays at 400 samples, and
    frame t equals the single frame that the stock encoder gives for samples [40 factor t, 40 factor t + 400). Early
    strides are kept at 2 as long as the factor is divisible, since a later reduction means more frames to compute.

    Args:
        factor: 1 to 8; 8 is the stock encoder.

    Returns:
        ``(strides, dilations)``, three each: for 5, ``((1, 1, 5), (1, 2, 4))``.

    Raises:
        InputError: the factor is not an integer from 1 to 8.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or not 1 <= factor <= STOCK_DS_FACTOR:
        raise InputError(f"encoder_target_ds_factor is {factor!r} but must be an integer from 1 to {STOCK_DS_FACTOR}.")
    strides, dilations = [], []
    remaining, dilation = factor, 1
    for is_last in (False, False, True):
        stride = remaining if is_last else 2 - remaining % 2
        strides.append(stride)
        dilations.append(dilation)
        remaining //= stride
        dilation = dilation * 2 // stride  # exact: only the last stride can be other than 1 or 2
    return tuple(strides), tuple(dilations)


def front_end_values(config: Any, source: str) -> dict[str, Any]:
    """Read and check the front end's keys of any family's configuration.

    Args:
        config: a configuration of Transformers or of this package.
        source: where it comes from, the subject of error messages.

    Returns:
        ``conv_dim``, ``conv_kernel``, ``conv_stride`` (tuples of seven), ``conv_bias``, ``feat_extract_norm`` and
        ``feat_extract_activation``.

    Raises:
        InputError: a value that this architecture cannot have; the message names the key.
    """
    values = {key: getattr(config, key, None) for key in _CONFIG_KEYS}
    if getattr(config, "model_type", None) == "data2vec-audio" or not hasattr(config, "feat_extract_norm"):
        values["feat_extract_norm"] = "layer"  # Data2VecAudio knows no other, whatever its configuration file says
    for key in ("conv_dim", "conv_kernel", "conv_stride"):
        if not isinstance(values[key], (tuple, list)) or len(values[key]) != len(STOCK_STRIDES):
            model_type = getattr(config, "model_type", type(config).__name__)
            raise InputError(
                f"{source} ({model_type}) has {key} = {values[key]!r}, but a Wav2Vec2 front end has seven layers."
            )
        values[key] = tuple(values[key])
    if values["conv_stride"] != STOCK_STRIDES:
        raise InputError(
            f"{source} has conv_stride = {values['conv_stride']}, but only {STOCK_STRIDES} can be retuned; choose the "
            "frame rate by encoder_target_ds_factor."
        )
    if values["feat_extract_norm"] not in ("layer", "group"):
        raise InputError(f'{source} has feat_extract_norm = {values["feat_extract_norm"]!r}, not "layer" or "group".')
    if values["feat_extract_activation"] not in ACT2FN:
        raise InputError(f"{source} has the unknown feat_extract_activation = {values['feat_extract_activation']!r}.")
    values["conv_bias"] = bool(values["conv_bias"])
    return values
