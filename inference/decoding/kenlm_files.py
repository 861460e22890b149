"""Language models for libraries that load the file themselves."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lact_asr.inference.language_models.language_model import LanguageModel, uncompressed


@contextlib.contextmanager
def kenlm_file(language_model: LanguageModel) -> Iterator[Path]:
    """Give the model's uncompressed file; what KenLM prints while it loads, past Python, is not shown."""
    sys.stderr.flush()
    with uncompressed(language_model.path) as path, open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield path
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
