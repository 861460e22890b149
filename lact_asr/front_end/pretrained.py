"""The front end's configuration and weights out of a checkpoint of Wav2Vec2, HuBERT, WavLM or Data2VecAudio.

Only the front end is read, whatever model is around it, from safetensors or PyTorch files, whole or in shards.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file

from lact_asr.errors import InputError
from lact_asr.front_end.architecture import front_end_values

_FRONT_END_KEY = re.compile(r"(?:^|\.)feature_extractor\.(conv_layers\..+)$")


def front_end_config_from_pretrained(name_or_folder: str | os.PathLike) -> dict[str, Any]:
    """The configuration keys of a checkpoint's front end, with which a `Wav2Vec2FrontEnd` can load it.

    Returns:
        ``conv_dim``, ``conv_kernel``, ``conv_stride`` (tuples of seven), ``conv_bias``, ``feat_extract_norm`` and
        ``feat_extract_activation``. The down-sampling factor is the user's choice and not among them.

    Raises:
        InputError: no such folder or hub name, an unreadable config.json, or another architecture.
    """
    name = os.fspath(name_or_folder)
    if os.path.isfile(name):
        raise InputError(f"{name} is a file; give the folder that holds it and its config.json, or a hub name.")
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise InputError(f"The folder {name} has no config.json; give one written by save_pretrained.")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if os.path.isdir(name):
            raise InputError(f"The configuration in {name} cannot be used: {_first_line(error)}") from error
        raise InputError(
            f"{name!r} is neither a folder nor a hub model that can be reached or is in the local cache; check the "
            "spelling, or download the model and give its folder."
        ) from error
    return front_end_values(config, source=f"The checkpoint {name}")


def read_front_end_weights(name_or_folder: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's front end, whatever model is around it, named ``conv_layers.N.…``.

    Reads model.safetensors, pytorch_model.bin (weights only: nothing in it is executed) or either in shards.

    Raises:
        InputError: there is no such file, or it is not readable.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in _weight_files(os.fspath(name_or_folder)):
        for key, tensor in _read_tensors(path).items():
            if key in weights:
                raise InputError(f"The checkpoint {name_or_folder} holds more than one front end: {key} occurs twice.")
            weights[key] = tensor
    return weights


def _weight_files(name: str) -> list[str]:
    """The files in which the front end's weights lie; of several formats the first that exists."""
    for filename in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        path = _find_file(name, filename)
        if path is None:
            continue
        if filename not in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
            return [path]
        return [_require_file(name, shard) for shard in _shards_with_front_end(path)]
    raise InputError(f"There is neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME} (nor shards of them) in {name}.")


def _shards_with_front_end(index_path: str) -> list[str]:
    try:
        with open(index_path, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        return sorted({shard for key, shard in weight_map.items() if _FRONT_END_KEY.search(key)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"The shard index {index_path} cannot be read: {_first_line(error)}") from error


def _find_file(name: str, filename: str) -> str | None:
    try:
        return cached_file(
            name,
            filename,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot get {filename} of {name}: {_first_line(error)}") from error


def _require_file(name: str, filename: str) -> str:
    path = _find_file(name, filename)
    if path is None:
        raise InputError(f"The checkpoint {name} names the file {filename} in its index but does not have it.")
    return path


def _read_tensors(path: str) -> dict[str, torch.Tensor]:
    """The front-end tensors of one file, named ``conv_layers.N.…``."""
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                found = [(k, file.get_tensor(k)) for k in file.keys() if _FRONT_END_KEY.search(k)]  # noqa: SIM118
        else:
            contents = torch.load(path, map_location="cpu", weights_only=True)
            found = [(k, v) for k, v in contents.items() if _FRONT_END_KEY.search(k) and isinstance(v, torch.Tensor)]
    except pickle.UnpicklingError as error:
        raise InputError(f"The weights {path} are damaged or hold more than plain tensors.") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise InputError(f"The weights {path} cannot be read: {_first_line(error)}") from error
    tensors = {_FRONT_END_KEY.search(key).group(1): tensor for key, tensor in found}
    if len(tensors) != len(found):
        raise InputError(f"The weights {path} hold more than one front end.")
    return tensors


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") + "." if lines else f"{type(error).__name__}."
