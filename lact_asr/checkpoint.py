"""Checkpoints: configuration, vocabulary and weights in one file, or a `save_pretrained` folder, of this package's models or Transformers'."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pickle
import sys
import textwrap
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import torch
from transformers import AutoConfig, PreTrainedModel

from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor, check_vocabulary
from lact_asr.transformers_ctc import load_transformers_ctc

FORMAT = "lact-asr checkpoint, version 1"
BEST_MODEL = "best_model.pt"  # in the folder of a training run
TRAINING_STATE = "lact-asr training state"  # begins the format of checkpoint_STEP.pt


@dataclass
class LoadedCheckpoint:
    """A model ready for inference, its processor, and what training noted down.

    ``model`` is a `HybridASRForCTC`, or a CTC model of Transformers (`lact_asr.transformers_ctc`).
    """

    model: HybridASRForCTC | PreTrainedModel
    processor: HybridASRProcessor
    notes: dict = field(default_factory=dict)


def save_file_atomically(content: object, path: Path) -> None:
    """`torch.save` to a temporary name beside ``path``, flushed to disk and renamed.

    Raises:
        OSError: it cannot be written (the disk is full, for one); what was at ``path`` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch, closing the archive, complains of what is missing in it
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Bring a renaming to the disk, so that no crash of the machine undoes it and yet keeps a later deletion."""
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# What a sound file can give at the moment, unlike EINVAL, which PyTorch gets of a truncated one.
_FILE_SYSTEM_FAILURES = frozenset(
    {errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENOMEM}
)


class FileNotReadNow(InputError):
    """The file system failed; the file itself may be sound."""


def load_torch_file(path: Path) -> object:
    """`torch.load` with ``weights_only=True`` on the CPU.

    Raises:
        InputError: no such file, a truncated file, or one that holds pickled objects.
        FileNotReadNow: the system could not read it, which says nothing about what it holds.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: the sentences below say it in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise InputError(
                f"{path} holds pickled Python objects, which can run code when they are loaded; it was not opened."
            ) from None
        raise InputError(f"{path} is not a checkpoint, or it is damaged.") from None
    except Exception as error:  # on bytes that are no checkpoint the unpickler fails in any way, IndexError included
        if isinstance(error, OSError) and error.errno in _FILE_SYSTEM_FAILURES:
            raise FileNotReadNow(
                f"{path} could not be read ({error.strerror}): try again, or move it away if that does not help."
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a checkpoint, or truncated or damaged ({reason}); copy it again.") from None


def save_checkpoint(path: Path, model: HybridASRForCTC, vocabulary: dict[str, int], notes: dict | None = None) -> None:
    """Write ``best_model.pt``: plain containers and tensors only, so that it opens with ``weights_only=True``.

    Args:
        path: the file.
        model: its configuration and weights are written (float32, or whatever they are kept in).
        vocabulary: token -> id.
        notes: numbers and strings worth keeping (step, word error rate, …).
    """
    content = {
        "format": FORMAT,
        "config": _plain(model.config.to_dict()),
        "vocabulary": dict(vocabulary),
        "model": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "notes": _plain(notes or {}),
    }
    save_file_atomically(content, path)


def load_checkpoint(name_or_path: str | os.PathLike) -> LoadedCheckpoint:
    """Load a model for inference from a checkpoint file or a run's folder, a `save_pretrained` folder or a hub name.

    Of a run's folder ``best_model.pt`` is taken; ``checkpoint_STEP.pt`` needs the ``config.json`` that lies beside it.
    Folders and hub names may also be of a CTC model of Transformers.

    Raises:
        InputError: one sentence that says why it cannot be used.
    """
    path = Path(name_or_path)
    if (path / BEST_MODEL).is_file():
        return _load_file(path / BEST_MODEL)
    if path.is_dir():
        return _load_folder(str(path))
    if path.exists() or path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _load_file(path)
    if _can_only_be_a_path(str(name_or_path)):
        missing = next(folder for folder in (*reversed(path.parents), path) if not folder.exists())
        raise InputError(f"There is no folder {missing}, and no checkpoint file of that name.")
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        print(f"There is no folder {name_or_path} here; asking the Hugging Face hub.", file=sys.stderr)
    return _load_folder(str(name_or_path))


def load_hybrid_checkpoint(name_or_path: str | os.PathLike) -> LoadedCheckpoint:
    """As `load_checkpoint`, where nothing but a model of this package will do.

    Raises:
        InputError: as `load_checkpoint`, or it is a model of Transformers.
    """
    checkpoint = load_checkpoint(name_or_path)
    if not isinstance(checkpoint.model, HybridASRForCTC):
        raise InputError(f"{name_or_path} is a {type(checkpoint.model).__name__}; this needs a model of this package.")
    return checkpoint


def _can_only_be_a_path(name: str) -> bool:
    """Whether the hub, whose names are NAME or USER/NAME, need not be asked: it takes its time to say no."""
    path = Path(name)
    if path.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or len(path.parts) > 2:
        return True
    return len(path.parts) > 1 and Path(path.parts[0]).exists()  # a mistyped folder beside others


def _load_file(path: Path) -> LoadedCheckpoint:
    content = load_torch_file(path)
    if isinstance(content, dict) and str(content.get("format")).startswith(TRAINING_STATE):
        content = _self_contained(content, path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint written by train_hybrid_asr.py (no {FORMAT!r} in it).")
    for key in ("config", "vocabulary", "model"):
        if not isinstance(content.get(key), dict):
            raise InputError(f"{path} lacks {key!r}: it was not written by train_hybrid_asr.py, or was changed since.")
    config = HybridASRConfig.from_values(_without_base_keys(content["config"]), source=str(path))
    check_vocabulary(content["vocabulary"], config.ctc_vocab_size, source=f"The vocabulary in {path}")
    _check_weights(config, content["model"], path)
    model = HybridASRForCTC(config)
    model.load_state_dict(content["model"])
    processor = HybridASRProcessor.from_vocabulary(content["vocabulary"], config.do_normalize)
    return LoadedCheckpoint(model.eval(), processor, content.get("notes", {}))


def _self_contained(state: dict, path: Path) -> dict:
    """A training state as the checkpoint of its step, with the configuration that the run wrote beside it."""
    configuration = path.with_name("config.json")
    try:
        config = json.loads(configuration.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{path} is a training state, whose configuration cannot be read from {configuration}."
        ) from None
    notes = {"step": state["progress"]["step"]} if isinstance(state.get("progress"), dict) else {}
    return {**state, "format": FORMAT, "config": config, "notes": notes}


def _check_weights(config: HybridASRConfig, weights: dict, path: Path) -> None:
    """Refuse weights that do not fit a configuration, before a model as large as it claims to be takes memory or minutes."""
    try:
        if config.num_hidden_layers > len(weights):
            raise RuntimeError(f"{config.num_hidden_layers} layers, {len(weights)} tensors")
        with torch.device("meta"):
            HybridASRForCTC(config).load_state_dict(weights, assign=True)
    except (RuntimeError, OverflowError) as error:
        raise InputError(
            f"The weights in {path} do not fit its configuration: {' '.join(str(error).split())[:300]}"
        ) from None


def _load_folder(name_or_folder: str) -> LoadedCheckpoint:
    importlib.import_module("lact_asr.auto")  # the tokenizer is found by the model's type, or with a warning
    try:
        config = AutoConfig.from_pretrained(name_or_folder, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # Transformers and the hub raise some ten kinds of errors for a name that is not there
        raise InputError(
            f"{name_or_folder!r} is no checkpoint file, no folder of save_pretrained, and no model that can be reached "
            f"on the hub ({_shortened(error)})"
        ) from None
    try:
        if not isinstance(config, HybridASRConfig):
            return LoadedCheckpoint(*load_transformers_ctc(name_or_folder, config))
        model, loading = HybridASRForCTC.from_pretrained(name_or_folder, output_loading_info=True)
        processor = HybridASRProcessor.from_pretrained(name_or_folder)
    except InputError:
        raise
    except Exception as error:  # as many kinds, for files that are missing or damaged
        raise InputError(
            f"The model in {name_or_folder!r} or its processor cannot be loaded ({_shortened(error)})"
        ) from None
    if loading["missing_keys"] or loading.get("mismatched_keys"):
        raise InputError(f"The weights in {name_or_folder} do not fit its configuration.")
    check_vocabulary(processor.vocabulary, model.config.ctc_vocab_size, source=f"The vocabulary in {name_or_folder}")
    return LoadedCheckpoint(model.eval(), processor)


def _shortened(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" …")


def _without_base_keys(config: dict) -> dict:
    """Only this model's own keys: what the base class adds differs between versions of Transformers."""
    return {key: value for key, value in config.items() if key in HybridASRConfig.__annotations__}


def _plain(value: object) -> object:
    """Containers, numbers and strings; anything else as its text."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
