"""Files beside a checkpoint: its language model, and that model's tuned weights."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from transformers.utils import cached_file

from lact_asr.errors import InputError
from lact_asr.inference.language_models.language_model import LanguageModel, load_language_model

LANGUAGE_MODEL_NAME = "lm.arpa"
TUNED_WEIGHTS_NAME = "lm_weights.json"


def checkpoint_folder(checkpoint: str) -> Path:
    """The folder that a checkpoint's companions lie in; for the name of a hub model one in the current folder, which need not be there yet."""
    path = Path(checkpoint)
    if not path.exists():
        return Path(f"models--{checkpoint.replace('/', '--')}")  # as the hub's own cache has it
    return path if path.is_dir() else path.parent


def companion(checkpoint: str, name: str) -> Path | None:
    """A file beside a checkpoint, or in a hub model's repository (from there it is fetched, or taken from the cache); None where there is none."""
    path = checkpoint_folder(checkpoint) / name
    if path.is_file():
        return path
    if Path(checkpoint).exists():
        return None
    with contextlib.suppress(OSError):  # the hub cannot be reached, and the model itself came from the cache
        found = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)
    return None


def find_language_model(lm_path: str, checkpoint: str) -> LanguageModel | None:
    """The language model of ``--lm_path``: a file, "none", or "auto" for the one beside the checkpoint if any."""
    if lm_path == "auto":
        lm_path = language_model_beside(checkpoint)
    return None if lm_path == "none" else load_language_model(lm_path)


def language_model_beside(checkpoint: str) -> str:
    beside = companion(checkpoint, LANGUAGE_MODEL_NAME)
    return "none" if beside is None else str(beside)


def tuned_weights(checkpoint: str, lm_path: str) -> dict[str, float]:
    """What `lact_asr.inference.tune_language_model` wrote beside the checkpoint; empty if not for this language model."""
    path = companion(checkpoint, TUNED_WEIGHTS_NAME)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tuned_for = path.parent / content.get("language_model", LANGUAGE_MODEL_NAME)
        if tuned_for.absolute() != Path(lm_path).absolute() and tuned_for.resolve() != Path(lm_path).resolve():
            return {}
        return {key: float(content["best"][key]) for key in ("lm_weight", "word_score")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} does not hold tuned language-model weights; remove it or tune again.") from None
