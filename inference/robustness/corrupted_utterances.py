"""A condition's recordings, and its manifest: what was done to each of them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lact_asr.atomic_files import write_text
from lact_asr.data.corruptions import Corruption
from lact_asr.data.noise import utterance_generator
from lact_asr.errors import InputError
from lact_asr.inference.evaluation import Utterance


class CorruptionManifest:
    """JSON lines with utterance, condition, parameters, seed and position in the order.

    All systems hear the same recordings, so that a condition has one manifest for all of them. Lines are appended as
    recordings are corrupted, and put into order by `write`.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Begin a file in an existing folder, or with ``resume`` go on with the one that an interrupted run left.

        Raises:
            InputError: a complete line of it is not one of a manifest.
        """
        self.path = path
        self._lines = self._complete_lines() if resume and path.exists() else {}
        self.write()

    def add(self, line: Mapping) -> None:
        """Append an utterance's line, unless it is there already."""
        if line["utterance"] not in self._lines:
            self._lines[line["utterance"]] = line
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_as_line(line))

    def write(self) -> None:
        """Write all lines in the order of the utterances."""
        write_text(self.path, "".join(map(_as_line, sorted(self._lines.values(), key=lambda line: line["position"]))))

    def _complete_lines(self) -> dict[str, Mapping]:
        *complete, _torn = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        try:
            return {line["utterance"]: line for line in map(json.loads, complete)}
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{self.path} is not a corruption manifest; remove it, or run without --resume") from None


def _as_line(line: Mapping) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def corrupted_utterances(
    utterances: Sequence[Utterance], condition: str, corruption: Corruption, manifest: CorruptionManifest, seed: int
) -> list[Utterance]:
    """The utterances under a condition: reading one corrupts it, and notes down in the manifest what was done.

    Args:
        utterances: in the order whose positions the manifest tells.
        condition: its name.
        corruption: of `lact_asr.data.corruptions.make_corruption`.
        manifest: of this condition.
        seed: with the utterance's id decides the corruption.
    """

    def read(position: int, utterance: Utterance) -> np.ndarray:
        samples, parameters = corruption(utterance.read(), utterance_generator(seed, utterance.id))
        names = {"utterance": utterance.id, "condition": condition}
        manifest.add({**names, "parameters": parameters, "seed": seed, "position": position})
        return samples

    return [
        dataclasses.replace(utterance, read=functools.partial(read, position, utterance))
        for position, utterance in enumerate(utterances)
    ]
