"""The plan of a grid: which commands make its corpus, train its models and evaluate its cells, and where each one writes.

A step's folder is named by a hash of everything that decides what the step makes. Cells (of one grid or of several) that
need the same training share it, and a grid that is changed repeats no more than what the change concerns.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ablations.flags import check_flags, flags, given
from ablations.grid import Cell, Grid
from lact_asr.checkpoint import BEST_MODEL
from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.inference.robustness.arguments import parse_arguments as parse_evaluation
from lact_asr.training.arguments import parse_arguments as parse_training

ROOT = Path(__file__).resolve().parents[1]

_OF_A_TRAINING = ("data_dir", "dataset_type", "config_path", "output_dir", "resume_from_checkpoint", "seed")
SET_BY_RUNNER = {
    "corpus": ("output_dir", "force"),
    "train": _OF_A_TRAINING,
    "finetune": (*_OF_A_TRAINING, "init_checkpoint"),
    "inference": ("checkpoint", "seed"),
    "evaluate": ("data_dir", "dataset_type", "output_dir", "resume", "system", "baseline"),
}


@dataclass(frozen=True, eq=False)
class Step:
    """One command and its folder.

    Attributes:
        title: what it is for.
        arguments: of ``python``, run in the repository's root.
        output: what the command makes in the step's folder.
        needs: steps to be finished first.
        resume: flags for taking up an interrupted run, and the path that is there if there was one.
        config: a model's configuration, written to ``config.json`` of the folder before the command starts.
    """

    title: str
    arguments: tuple[str, ...]
    output: Path
    needs: tuple[Step, ...] = ()
    resume: tuple[str, Path] | None = None
    config: Mapping[str, object] | None = None

    @property
    def folder(self) -> Path:
        """Holds the output, the log, and once the step is done what it took."""
        return self.output.parent

    @property
    def command(self) -> str:
        """As a user types it."""
        return shlex.join(["python", *self.arguments])


@dataclass(frozen=True)
class Plan:
    """All steps, each after those that it needs, and the one that evaluates each cell."""

    steps: tuple[Step, ...]
    evaluations: tuple[tuple[Cell, Step], ...]


@dataclass(frozen=True)
class _Data:
    """What is evaluated on, and trained on.

    Attributes:
        identity: what decides it, for hashes.
        flags: by which commands read it.
        steps: what makes it; none for a folder that is there.
    """

    identity: str
    flags: tuple[str, ...]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class _Model:
    """A checkpoint, what decides it, and the step that makes it, if any."""

    identity: str
    checkpoint: Path
    steps: tuple[Step, ...] = ()


def plan_grid(grid: Grid, output_dir: Path) -> Plan:
    """Turn a grid into steps.

    Args:
        grid: of `read_grid`.
        output_dir: grids that share it share corpora and trainings.

    Raises:
        InputError: a flag or configuration key that does not exist or has an impossible value; the cell is named.
    """
    planner = _Planner(output_dir.resolve(), grid.checkpoint)
    evaluations = []
    for cell in grid.cells():
        try:
            evaluations.append((cell, planner.evaluation(cell)))
        except InputError as error:
            raise InputError(f"The cell {cell.name!r} of {grid.name}: {error}") from None
    return Plan(tuple(planner.steps.values()), tuple(evaluations))


class _Planner:
    """Makes steps, each once."""

    def __init__(self, output_dir: Path, checkpoint: str | None) -> None:
        self.output_dir = output_dir
        self.ready_model = None if checkpoint is None else _ready_model(checkpoint)
        self.steps: dict[Path, Step] = {}

    def evaluation(self, cell: Cell) -> Step:
        for section, names in SET_BY_RUNNER.items():
            for name in cell.settings.get(section, {}).keys() & set(names):
                raise InputError(f"'{section}.{name}' is set by the runner; leave it out.")
        data = self._data(cell.settings["corpus"])
        model = self.ready_model or self._training(cell, data)
        inference = flags({**cell.settings.get("inference", {}), "seed": cell.seed})
        evaluate = flags(cell.settings.get("evaluate", {}))
        key = [cell.name, model.identity, data.identity, inference, evaluate]
        output = self.output_dir / "evaluations" / f"{_slug(cell.name)}_{_digest(key)}" / "evaluation"
        system = ["--checkpoint", str(model.checkpoint), *inference]
        arguments = (
            "-m", "lact_asr.inference.evaluate_robustness", *data.flags, *evaluate, "--output_dir", str(output),
            "--system", f"{cell.name}: {shlex.join(system)}",
        )  # fmt: skip
        check_flags(parse_evaluation, list(arguments[2:]))
        title = f"evaluate {cell.name}, seed {cell.seed}"
        return self._add(Step(title, arguments, output, (*data.steps, *model.steps), ("--resume", output)))

    def _data(self, settings: Mapping[str, object]) -> _Data:
        if "data_dir" in settings:
            place = {**settings, "data_dir": (ROOT / str(settings["data_dir"])).resolve()}
            return _Data(str(flags(place)), tuple(flags(place)))
        output = self.output_dir / "corpora" / _digest(given(settings)) / "corpus"
        arguments = ("-m", "lact_asr.data.generated_speech", "--output_dir", str(output), *flags(settings))
        step = self._add(Step("generate the corpus", arguments, output))
        return _Data(step.folder.name, ("--data_dir", str(output)), (step,))

    def _training(self, cell: Cell, data: _Data) -> _Model:
        """The model of a cell, fine-tuned if the grid says so."""
        settings = {**cell.settings["train"], "seed": cell.seed}
        config = _config_values(cell.settings.get("config", {}))
        model = self._trained("train", settings, config, data)
        if "finetune" in cell.settings:
            model = self._trained("finetune", {**settings, **cell.settings["finetune"]}, config, data, model)
        return model

    def _trained(
        self,
        title: str,
        settings: dict[str, object],
        config: dict[str, object],
        data: _Data,
        start: _Model | None = None,
    ) -> _Model:
        key = [_normalised(config), given(settings), data.identity, start.identity if start else None]
        output = self.output_dir / "trainings" / _digest(key) / "model"
        if start is not None:
            settings = {**settings, "init_checkpoint": start.checkpoint}
        arguments = (
            "training/train_hybrid_asr.py", "--config_path", str(output.parent / "config.json"), *data.flags,
            "--output_dir", str(output), *flags(settings),
        )  # fmt: skip
        check_flags(parse_training, list(arguments[1:]))
        needs = (*data.steps, *(start.steps if start else ()))
        resume = ("--resume_from_checkpoint=auto", output)
        step = self._add(Step(f"{title} {output.parent.name}", arguments, output, needs, resume, config))
        return _Model(step.folder.name, output / BEST_MODEL, (step,))

    def _add(self, step: Step) -> Step:
        return self.steps.setdefault(step.output, step)


def _ready_model(checkpoint: str) -> _Model:
    path = (ROOT / checkpoint).resolve()
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}.")
    return _Model(hashlib.sha256(path.read_bytes()).hexdigest(), path)


def _config_values(settings: Mapping[str, object]) -> dict[str, object]:
    """The keys of the file ``base`` with those that replace them, checked."""
    values = {key: value for key, value in settings.items() if key != "base"}
    if "base" in settings:
        path = ROOT / str(settings["base"])
        HybridASRConfig.from_json_file(path)
        values = {**json.loads(path.read_text(encoding="utf-8")), **values}
    HybridASRConfig.from_values(values, source="'config'")
    return values


def _normalised(values: Mapping[str, object]) -> dict[str, object]:
    """What differs from the defaults: the same model is the same, whether a default is written out or not."""
    config, default = HybridASRConfig.from_values(dict(values)), HybridASRConfig()
    everything = {key: getattr(config, key) for key in HybridASRConfig.__annotations__}
    return {key: value for key, value in everything.items() if value != getattr(default, key)}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[:60]
