"""What files of transcripts call recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lact_asr.audio import AUDIO_EXTENSIONS


def recording_names(ids: Sequence[str]) -> list[str]:
    """A name for each recording: a file's without folders and suffix, or, where two have the same, its path; an utterance's id as it is."""
    names = [Path(id).stem if Path(id).suffix.lower() in AUDIO_EXTENSIONS else id for id in ids]
    counts = Counter(names)
    return [name if counts[name] == 1 else id for name, id in zip(names, ids, strict=True)]
