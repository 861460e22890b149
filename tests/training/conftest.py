"""A tiny generated corpus, a tiny model, and the training command run in this process."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState, GradientState

from lact_asr.checkpoint import LoadedCheckpoint, load_checkpoint
from lact_asr.data.corpora import load_corpus
from lact_asr.data.generated_speech import generate_corpus
from lact_asr.training.checkpoint_rotation import saved_checkpoints
from lact_asr.training.train_hybrid_asr import main

PATIENCE_SECONDS = 300
TINY_MODEL = {
    "conv_dim": [16] * 7,
    "encoder_target_ds_factor": 8,
    "encoder_lr_scale": 0.5,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attn_heads": 2,
    "num_lact_heads": 2,
    "lact_fw_hidden_dim": 16,
}

NUM_UTTERANCES = 9  # five batches of two an epoch


@dataclass(frozen=True)
class Run:
    """A finished call of the training command: its exit code, what it printed, and its folder."""

    exit_code: int
    out: str
    err: str
    folder: Path

    def log(self) -> list[dict]:
        """Every event of the training log."""
        return list(map(json.loads, (self.folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()))

    def events(self, kind: str) -> list[dict]:
        return [event for event in self.log() if event["event"] == kind]

    def best(self) -> LoadedCheckpoint:
        return load_checkpoint(self.folder / "best_model.pt")

    def state(self) -> dict:
        """What the newest checkpoint holds."""
        return torch.load(saved_checkpoints(self.folder)[0], weights_only=True)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory) -> Path:
    """The nine shortest training utterances of a generated corpus, one for validation, one for the test."""
    folder = tmp_path_factory.mktemp("generated") / "corpus"
    generate_corpus(folder, hours=0.015, seed=1, num_workers=1)
    for subset, count in (("train-generated", NUM_UTTERANCES), ("dev-generated", 1), ("test-generated", 1)):
        _keep_shortest(folder / subset, count)
    return folder


def _keep_shortest(subset: Path, count: int) -> None:
    """Delete all recordings of a subset but the shortest, with their transcripts."""
    recordings = sorted(subset.rglob("*.flac"), key=lambda path: soundfile.info(path).frames)
    assert len(recordings) >= count
    for path in recordings[count:]:
        path.unlink()
    for path in subset.rglob("*.trans.txt"):
        lines = [line for line in path.read_text().splitlines() if (path.parent / f"{line.split()[0]}.flac").exists()]
        path.write_text("".join(line + "\n" for line in lines))


@pytest.fixture(scope="session")
def training_seconds(corpus_dir) -> float:
    """Seconds of audio in the training subset."""
    return load_corpus(corpus_dir, "train-generated").total_hours * 3600


@pytest.fixture(scope="session")
def write_config() -> Callable[..., Path]:
    """Write the tiny model's configuration, with changes, into a folder."""

    def write(folder: Path, **changes) -> Path:
        path = folder / "model.json"
        path.write_text(json.dumps({**TINY_MODEL, **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def write_manifest(corpus_dir) -> Callable[..., list]:
    """Write the shortest ``count`` training utterances into a manifest; returns their cuts."""

    def write(path: Path, count: int, **fields) -> list:
        cuts = sorted(load_corpus(corpus_dir, "train-generated").cuts, key=lambda cut: cut.duration)[:count]
        rows = [{"audio_filepath": cut.recording.sources[0].source, "text": cut.supervisions[0].text} for cut in cuts]
        path.write_text("".join(json.dumps({**row, **fields}) + "\n" for row in rows))
        return cuts

    return write


def training_command(*flags: object, output_dir: Path) -> list[str]:
    """The command's words; later flags override those that every test needs."""
    common = ["--train_subset", "train-generated", "--val_subset", "dev-generated", "--device", "cpu", "--lm_order", 0]
    common += ["--batch_size", 2, "--warmup_steps", 2, "--logging_steps", 1]
    return [str(word) for word in (*common, "--output_dir", output_dir, *flags)]


def run_training(*flags: object, output_dir: Path) -> Run:
    """Call the command in this process."""
    _forget_accelerator()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            exit_code = main(training_command(*flags, output_dir=output_dir))
        finally:
            _forget_accelerator()
    return Run(exit_code, out.getvalue(), err.getvalue(), output_dir)


def _forget_accelerator() -> None:
    """accelerate keeps devices and accumulation of a process's first `Accelerator` for all that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def train(corpus_dir, write_config, tmp_path) -> Callable[..., Run]:
    """``train(*flags, name="run", **configuration)``: the command on the tiny corpus, in a folder of the test."""

    def run(*flags: object, name: str = "run", **configuration) -> Run:
        config = write_config(tmp_path, **configuration)
        return run_training("--config_path", config, "--data_dir", corpus_dir, *flags, output_dir=tmp_path / name)

    return run


@pytest.fixture
def start_training(corpus_dir, write_config, tmp_path) -> Callable[..., BaseProcess]:
    """As `train`, but in a process of its own, which goes on by itself and can be killed."""
    # Forked from a process that has imported everything and has no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lact_asr.training.run_setup"])

    def start(*flags: object, name: str = "run", **configuration) -> BaseProcess:
        paths = ("--config_path", write_config(tmp_path, **configuration), "--data_dir", corpus_dir)
        process = context.Process(target=main, args=(training_command(*paths, *flags, output_dir=tmp_path / name),))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool], BaseProcess | subprocess.Popen], None]:
    """Look again and again until something has happened, as long as a training's process lives."""

    def wait(happened: Callable[[], bool], process: BaseProcess | subprocess.Popen) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            alive = process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
            assert alive, "training ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="session")
def start_in_two_processes(corpus_dir) -> Callable[..., subprocess.Popen]:
    """``start_in_two_processes(config, folder, {name: flags})``: the command by torchrun, one run after another."""

    def start(config: Path, folder: Path, trainings: dict[str, tuple]) -> subprocess.Popen:
        data = ("--config_path", config, "--data_dir", corpus_dir)
        commands = [training_command(*data, *flags, output_dir=folder / name) for name, flags in trainings.items()]
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        script = Path(__file__).with_name("run_trainings.py")
        return subprocess.Popen(
            [*launcher, script, json.dumps(commands)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def train_in_two_processes(start_in_two_processes) -> Callable[..., dict[str, Run]]:
    """As `start_in_two_processes`, and waits for the runs."""

    def run(config: Path, folder: Path, trainings: dict[str, tuple]) -> dict[str, Run]:
        with start_in_two_processes(config, folder, trainings) as launched:
            out, err = launched.communicate(timeout=600)
        assert launched.returncode == 0, err
        return {name: Run(0, out, err, folder / name) for name in trainings}

    return run


@pytest.fixture(scope="session")
def finished_run(corpus_dir, write_config, tmp_path_factory) -> Iterator[Run]:
    """A run of two epochs (five batches each) with everything on; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    run = run_training(
        "--config_path", write_config(folder), "--data_dir", corpus_dir, "--test_subset", "test-generated",
        "--max_epochs", 2, "--warmup_steps", 4, "--save_steps", 4, "--lm_order", 3, "--enable_ttt",
        output_dir=folder / "run",
    )  # fmt: skip
    assert run.exit_code == 0
    return run
