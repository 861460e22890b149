"""Runs the steps of a plan, several at a time. What is finished stays finished; what was interrupted is taken up again."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tqdm import tqdm

from ablations.plan import ROOT, Step
from lact_asr.atomic_files import write_json
from lact_asr.checkout import git_commit

LOG, FINISHED = "log.txt", "finished.json"


def is_finished(step: Step) -> bool:
    """Whether an earlier run has done it."""
    return (step.folder / FINISHED).is_file()


def facts(step: Step) -> dict:
    """What a finished step noted down: command, seconds, threads, commit, machine."""
    return json.loads((step.folder / FINISHED).read_text(encoding="utf-8"))


def run_steps(steps: Sequence[Step], processes: int) -> dict[Step, str]:
    """Run what is not finished yet, each step once those that it needs are done.

    Args:
        steps: each after those that it needs.
        processes: so many at a time; they share the cores, unless OMP_NUM_THREADS is set.

    Returns:
        The steps that failed, or could not start because another had failed, each with a sentence.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after every running command was asked to stop and has.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _num_cores() // processes))
    commands = _Commands({**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"})
    waiting = [step for step in steps if not is_finished(step)]
    running: dict[Future, Step] = {}
    failures: dict[Step, str] = {}
    with (
        _signals_as_ctrl_c(),
        tqdm(total=len(steps), initial=len(steps) - len(waiting), desc="steps", unit="step") as bar,
        ThreadPoolExecutor(processes) as pool,
    ):
        try:
            while waiting or running:
                for step in [step for step in waiting if not set(step.needs) & {*waiting, *running.values()}]:
                    waiting.remove(step)
                    if failed := [need for need in step.needs if need in failures]:
                        failures[step] = f"needs another step, which failed: {failed[0].title}"
                        bar.update()
                    else:
                        running[pool.submit(commands.run, step)] = step
                        bar.set_postfix_str(step.title)
                # Now and then it looks up: a signal just before it waits, or on another thread, would not wake it.
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    step, message = running.pop(future), future.result()
                    bar.update()
                    if message is not None:
                        failures[step] = message
                        tqdm.write(f"failed: {step.title}: {message}", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            commands.stop()
            raise
    return failures


class _Commands:
    """The commands that are running, so that they can be stopped."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._running: set[subprocess.Popen] = set()
        self._stopping = False

    def run(self, step: Step) -> str | None:
        """Run a step's command to its end; returns why it failed, or None."""
        step.folder.mkdir(parents=True, exist_ok=True)
        if step.config is not None:
            write_json(step.folder / "config.json", step.config)
        arguments = list(step.arguments)
        if step.resume is not None and step.resume[1].exists():
            arguments.append(step.resume[0])
        started, log = time.monotonic(), step.folder / LOG
        with open(log, "a", encoding="utf-8") as file:
            print(f"$ {step.command}", file=file, flush=True)
            code = self._wait_for([sys.executable, *arguments], file)
        if code != 0:
            return f"exit code {code}, {_last_line(log)} ({log})"
        write_json(
            step.folder / FINISHED,
            {
                "command": step.command,
                "seconds": round(time.monotonic() - started, 2),
                "threads": int(self.environment["OMP_NUM_THREADS"]),
                "git_commit": git_commit(),
                "machine": f"{platform.machine()}, {_num_cores()} cores",
            },
        )
        return None

    def _wait_for(self, command: list[str], log: object) -> int:
        # A session of its own: Ctrl-C reaches this process alone, and each command is asked to stop once.
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._running.add(process)
        if self._stopping:
            process.terminate()
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a stopped command has left of its own processes
        self._running.discard(process)
        return code

    def stop(self) -> None:
        """Ask every running command to stop; trainings save first."""
        self._stopping = True
        for process in list(self._running):
            process.terminate()


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM, and SIGINT even where the parent process has ignored it (test runners and background jobs do)."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _last_line(log: object) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].rpartition("\r")[2].strip() if lines else ""
