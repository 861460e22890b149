"""Kill a training again and again, resume it each time, and compare it bit by bit with one that was left alone.

    python -m benchmarks.kill_and_resume --output_dir benchmarks/results/kill_and_resume

A tiny model learns a few generated sentences, with everything switched on that draws at random. One process trains it to the end; others,
one after another, are sent SIGKILL at random moments (while they start, in a step, while they write a checkpoint), each started by the same
command. Something is lost if the newest readable checkpoint is then further back than --save_steps, or if the next process does not go on
from it. In the end the logs, the last checkpoints and the best models of both runs must be equal. Writes kill_and_resume.json; exit code 1
after any loss or difference.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.forked_command import ForkedCommand, allow_forks
from lact_asr.atomic_files import write_json
from lact_asr.errors import exit_on_input_error
from lact_asr.shared_flags import positive_int

MODEL = {
    "conv_dim": [8] * 7, "encoder_target_ds_factor": 8, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16,
    "num_attn_heads": 2, "num_lact_heads": 2, "lact_fw_hidden_dim": 8, "hidden_dropout": 0.1, "attention_dropout": 0.1,
    "layerdrop": 0.2, "mask_time_prob": 0.2, "mask_time_length": 4, "mask_feature_prob": 0.2, "mask_feature_length": 4,
    "enable_ttt": True, "ttt_mask_length": 4,
}  # fmt: skip
SAVE_STEPS = 2
FLAGS = (
    "--train_subset", "train-generated", "--val_subset", "dev-generated", "--device", "cpu", "--lm_order", 0,
    "--batch_size", 2, "--gradient_accumulation_steps", 2, "--optimizer", "muon", "--peak_lr", 5e-3, "--warmup_steps", 5,
    "--speed_factors", "0.9,1,1.1", "--logging_steps", 1, "--eval_steps", 5, "--save_steps", SAVE_STEPS,
    "--resume_from_checkpoint", "auto",
)  # fmt: skip
CORPUS_HOURS = 0.01
STARTING, STEPPING, WRITING = MOMENTS = ("while starting", "in a step", "while writing a checkpoint")
MOST_STEPS_AHEAD = 2  # of what is planned
SPARE_STEPS = 10  # so that no process comes to the end before it is killed
# What differs between any two runs.
TIMES = ("time", "audio_seconds_per_second", "share_waiting_for_data", "seconds", "data_seconds")


@dataclass(frozen=True)
class PlannedKill:
    """The kind of moment, the step that is logged first, and the share of the time that a start or a step takes."""

    moment: str
    step: int
    share: float


@dataclass(frozen=True)
class Kill:
    """What a kill left behind.

    Attributes:
        moment: as planned.
        steps: how many the process had logged.
        unfinished_file: whether it was writing a checkpoint.
        lost: what was lost, in words; empty if nothing was.
    """

    moment: str
    steps: int
    unfinished_file: bool
    lost: str


class Training(ForkedCommand):
    """A process that trains in a run's folder, where others may have trained before; what it prints lies beside that."""

    def __init__(self, flags: list[str], folder: Path) -> None:
        from lact_asr.training.train_hybrid_asr import main as train

        self.folder, self.started = folder, time.time()
        self.resumed_from, self.leftovers = checkpoint_step(folder), _unfinished_checkpoints(folder)
        super().__init__("the training", train, [*flags, "--output_dir", str(folder)], folder.with_suffix(".txt"))

    def steps(self) -> list[int]:
        """Training steps that it has logged."""
        events = read_log(self.folder)
        return [event["step"] for event in events if event["event"] == "train" and event["time"] > self.started]

    def has_logged(self, step: int) -> bool:
        """Whether it has come as far as a step."""
        last = read_log(self.folder, last=1)
        return bool(last) and last[0]["time"] > self.started and last[0]["step"] >= step

    def unfinished_checkpoints(self) -> set[Path]:
        """What it writes, or was writing when it was killed."""
        return _unfinished_checkpoints(self.folder) - self.leftovers


def _unfinished_checkpoints(folder: Path) -> set[Path]:
    return set(folder.glob(".checkpoint_*.tmp"))


def read_log(folder: Path, last: int = 0) -> list[dict]:
    """Events of a run; those of the last so many whole lines, or all."""
    log = folder / "training_log.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in lines[-last:]]


def newest_checkpoint(folder: Path) -> dict | None:
    """The newest one that can be read, None without any."""
    from lact_asr.training.checkpoint_rotation import load_newest_readable, saved_checkpoints

    paths = saved_checkpoints(folder)
    return load_newest_readable(paths, tqdm.write)[1] if paths else None


def checkpoint_step(folder: Path) -> int:
    """Of the newest checkpoint that can be read, 0 without any."""
    checkpoint = newest_checkpoint(folder)
    return 0 if checkpoint is None else checkpoint["progress"]["step"]


def plan_kills(count: int, seed: int) -> list[PlannedKill]:
    """All kinds in random order; from one to the next the run comes 1 to 3 steps further."""
    rng = random.Random(seed)
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(count)]
    rng.shuffle(moments)
    steps = itertools.accumulate(rng.choice((1, 2, 3)) for _ in moments)
    return [PlannedKill(moment, step, rng.random()) for moment, step in zip(moments, steps, strict=True)]


def kill_as_planned(training: Training, plan: PlannedKill, start_seconds: float, step_seconds: float) -> Kill:
    """Kill a training that has just been started, and look at what is left."""
    if plan.moment == STARTING:
        training.wait_for(lambda: training.has_logged(plan.step), plan.share * start_seconds)
    else:
        training.wait_for(lambda: training.has_logged(plan.step))
    if plan.moment == STEPPING:
        training.wait_for(lambda: training.has_logged(plan.step + MOST_STEPS_AHEAD), plan.share * step_seconds)
    elif plan.moment == WRITING:
        training.wait_for(training.unfinished_checkpoints)
    killed = training.kill()
    steps, kept, lost = training.steps(), checkpoint_step(training.folder), ""
    if not killed:
        lost = f"the process ended by itself with exit code {training.process.exitcode}"
    elif steps and steps[0] != training.resumed_from + 1:
        lost = f"the process started with step {steps[0]} instead of {training.resumed_from + 1}"
    elif kept < max(training.resumed_from, max(steps, default=0) - SAVE_STEPS):
        lost = f"step {max(steps, default=training.resumed_from)} was done, and the newest readable checkpoint is of step {kept}"
    return Kill(plan.moment, len(steps), bool(training.unfinished_checkpoints()), lost)


def values_by_name(folder: Path) -> dict[str, object]:
    """Every number, string and tensor (as its bytes) of a run's log, last checkpoint and best model, but times."""
    from lact_asr.checkpoint import BEST_MODEL, load_torch_file

    best_model = load_torch_file(folder / BEST_MODEL)
    contents = {"log": read_log(folder), "checkpoint": newest_checkpoint(folder), "best model": best_model}
    return dict(_values_inside(contents, ""))


def _values_inside(content: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in TIMES:
                yield from _values_inside(value, f"{name}/{key}")
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from _values_inside(value, f"{name}/{index}")
    else:
        yield name, content.numpy().tobytes() if hasattr(content, "numpy") else content


def make_flags(folder: Path, seed: int) -> list[str]:
    """Generate the corpus and write the model's configuration; returns the flags that all trainings share."""
    from lact_asr.data.generated_speech import generate_corpus

    generate_corpus(folder / "corpus", hours=CORPUS_HOURS, seed=seed, num_workers=1)
    write_json(folder / "model.json", MODEL)
    corpus = folder / "corpus"
    paths = ("--config_path", folder / "model.json", "--data_dir", corpus, "--noise_dir", corpus / "dev-generated")
    return [str(flag) for flag in (*paths, *FLAGS, "--seed", seed)]


def kill_and_resume(folder: Path, kills: int, seed: int) -> dict:
    """One run undisturbed and one killed so many times, in a new folder; returns what stands in the results file."""
    plan = plan_kills(kills, seed)
    steps = plan[-1].step + SPARE_STEPS
    flags = [*make_flags(folder, seed), "--max_steps", str(steps)]
    undisturbed = Training(flags, folder / "undisturbed")
    undisturbed.finish()
    times = [event["time"] for event in read_log(undisturbed.folder)]
    start_seconds, step_seconds = times[0] - undisturbed.started, (times[-1] - times[0]) / steps
    done = [
        kill_as_planned(Training(flags, folder / "killed"), planned, start_seconds, step_seconds)
        for planned in tqdm(plan, "killing", unit="kill")
    ]
    last = Training(flags, folder / "killed")
    last.finish()
    expected, actual = values_by_name(undisturbed.folder), values_by_name(last.folder)
    return {
        "kills": len(done),
        "moments": collections.Counter(kill.moment for kill in done),
        "unfinished_checkpoints": sum(kill.unfinished_file for kill in done),
        "steps": steps,
        "steps_repeated": sum(kill.steps for kill in done) + len(last.steps()) - steps,
        "lost": [f"{kill.moment}: {kill.lost}" for kill in done if kill.lost],
        "values": len(expected),
        "differences": [name for name in expected | actual if expected.get(name) != actual.get(name)],
    }


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Train, kill, compare, report; returns the exit code."""
    arguments = _parse(argv)
    allow_forks()
    import torch

    import lact_asr.training.run_setup  # noqa: F401 - and everything imported
    from benchmarks.timing import environment

    folder, started = Path(tempfile.mkdtemp(prefix="kill_and_resume_")), time.monotonic()
    kills = arguments.kills
    result = kill_and_resume(folder, kills, arguments.seed)
    result |= {"seconds": round(time.monotonic() - started), **environment(torch.device("cpu"))}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "kill_and_resume.json", result)
    lost, different = len(result["lost"]), len(result["differences"])
    kinds = ", ".join(f"{count} {moment}" for moment, count in result["moments"].items())
    print(f"kills        {kills}: {kinds}; {result['unfinished_checkpoints']} left an unfinished checkpoint")
    print(f"resumed      {kills - lost}; {result['steps_repeated']} steps repeated in a run of {result['steps']}")
    print(f"lost         {lost}")
    print(f"differences  {different} of {result['values']:,} values of log, checkpoint and best model")
    if lost or different:
        print(f"Both runs are in {folder}.", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill_and_resume",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for kill_and_resume.json; made if needed")
    parser.add_argument("--kills", type=positive_int, default=100, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of moments, corpus and training (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
