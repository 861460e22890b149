"""Read ten thousand broken files: no crash, no hang, no growth of memory, and one sentence for each refusal.

    python -m benchmarks.fuzz --output_dir benchmarks/results/fuzz

Recordings (WAV, FLAC, Ogg Opus and Vorbis, MP3 and others, damaged or with headers that lie), manifests, LibriSpeech transcripts, results files
and checkpoints, each made from the seed and its number. A child process reads them, so that a crash in a C library ends one case and not the
run; it is killed where a case takes too long. Every finding is written to OUTPUT_DIR/findings/KIND; what was found so far is in
tests/benchmarks/fuzz_findings, and --replay reads it again. Writes fuzz.json; exit code 1 after any finding.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

from lact_asr.atomic_files import write_json
from lact_asr.errors import exit_on_input_error

LIMIT_SECONDS = 60.0  # a case takes 0.03; on a crowded machine a process may get nothing to do for some seconds
LIMIT_BYTES_OF_A_CASE = 128 * 2**20
LIMIT_BYTES_OF_GROWTH = 16 * 2**20
ENOUGH_CASES = 2_000  # to tell growth from what is loaded with the first case of a kind
_ADDRESS_SPACE_BYTES = (
    4 * 2**30
)  # above what the reader has at its start: an array for what a header claims does not fit


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        kind: of the file.
        sentences: with which it, or parts of it, were refused.
        finding: what must not be, in words; None if all is well.
        seconds: it took.
        peak_bytes: memory above what the reader had before it.
        resident_bytes: memory that the reader had after it.
    """

    kind: str
    sentences: list[str] = field(default_factory=list)
    finding: str | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    resident_bytes: int = 0


class Reader:
    """A child process that reads cases one after another, and a new one after it died."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, childs_end = context.Pipe()
        self.process = context.Process(target=_read_cases, args=(childs_end,), daemon=True)
        self.process.start()
        childs_end.close()

    def read(self, case) -> Outcome:
        """Have a case read, for so many seconds at most."""
        started = time.perf_counter()
        self._pipe.send(case)
        finding = f"takes more than {LIMIT_SECONDS:g} s"
        try:
            if self._pipe.poll(LIMIT_SECONDS):
                outcome = self._pipe.recv()
                outcome.seconds = time.perf_counter() - started
                return outcome
        except EOFError:
            self.process.join()
            finding = f"kills the process with {signal.Signals(-self.process.exitcode).name}"
        self.stop()
        self._start()
        return Outcome(case.kind, finding=finding, seconds=time.perf_counter() - started)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _read_cases(pipe: Connection) -> None:
    """The child's work, until it is killed."""
    from benchmarks.fuzz_readers import prepare_folder

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stderr.fileno())  # of progress bars, and of C libraries
    limit = _status_bytes("VmSize") + _ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
        folder = Path(name)
        prepare_folder(folder)
        while True:
            pipe.send(_outcome(pipe.recv(), folder))


def _outcome(case, folder: Path) -> Outcome:
    from benchmarks.fuzz_readers import read_case

    outcome = Outcome(case.kind)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmRSS")
    try:
        outcome.sentences = read_case(case, folder)
    except BaseException as error:
        outcome.finding = f"{type(error).__name__}: {error}"[:500]
    outcome.peak_bytes, outcome.resident_bytes = _status_bytes("VmHWM") - before, _status_bytes("VmRSS")
    if outcome.peak_bytes > LIMIT_BYTES_OF_A_CASE and outcome.finding is None:
        outcome.finding = f"takes {outcome.peak_bytes / 2**20:.0f} MiB"
    return outcome


def _status_bytes(key: str) -> int:
    """A line of /proc/self/status, given there in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def read_all(cases: Iterable) -> Iterator[tuple[object, Outcome]]:
    """Read cases in a child process; each with its outcome, in their order."""
    reader = Reader()
    try:
        for case in cases:
            yield case, reader.read(case)
    finally:
        reader.stop()


def growth_bytes(resident_bytes: list[int]) -> int:
    """From the second tenth of a run, when everything is loaded, to its last."""
    tenth = max(len(resident_bytes) // 10, 1)
    return round(statistics.median(resident_bytes[-tenth:]) - statistics.median(resident_bytes[tenth : 2 * tenth]))


def sum_up(outcomes: list[Outcome]) -> dict:
    """What stands in the results file."""
    kinds = collections.defaultdict(collections.Counter)
    for outcome in outcomes:
        word = "findings" if outcome.finding else "refused" if outcome.sentences else "read"
        kinds[outcome.kind].update(cases=1, **{word: 1}, sentences=len(outcome.sentences))
    return {
        "cases": len(outcomes),
        "kinds": {kind: dict(counts) for kind, counts in sorted(kinds.items())},
        "findings": collections.Counter(outcome.finding for outcome in outcomes if outcome.finding),
        "resident_mib": [
            round(outcome.resident_bytes / 2**20, 1) for outcome in outcomes[:: max(len(outcomes) // 50, 1)]
        ],
        "growth_bytes": growth_bytes([outcome.resident_bytes for outcome in outcomes if outcome.resident_bytes]),
        "most_bytes_of_a_case": max(outcome.peak_bytes for outcome in outcomes),
        "most_seconds_of_a_case": round(max(outcome.seconds for outcome in outcomes), 3),
    }


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Make, read, report; returns the exit code."""
    arguments = _parse(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tqdm.monitor_interval = 0  # readers are forked from this process, so it must have no threads
    import torch

    from benchmarks.fuzz_cases import make_case, saved_cases
    from benchmarks.timing import environment

    started, outcomes = time.monotonic(), []
    replayed = [] if arguments.replay is None else saved_cases(arguments.replay)
    made = (make_case(arguments.seed, number) for number in range(arguments.cases))
    read, total = read_all(itertools.chain(replayed, made)), len(replayed) + arguments.cases
    for case, outcome in tqdm(read, "reading", total, unit="case", mininterval=1.0):
        if outcome.finding:
            path = arguments.output_dir / "findings" / case.kind / f"{len(outcomes)}.{case.name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(case.content)
            tqdm.write(f"{path}: {outcome.finding}")
        outcomes.append(outcome)
    result = sum_up(outcomes)
    result |= {"seed": arguments.seed, "seconds": round(time.monotonic() - started), **environment(torch.device("cpu"))}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "fuzz.json", result)
    _report(result)
    grows = result["cases"] >= ENOUGH_CASES and result["growth_bytes"] > LIMIT_BYTES_OF_GROWTH
    return 1 if result["findings"] or grows else 0


def _report(result: dict) -> None:
    for kind, counts in result["kinds"].items():
        print(f"{kind:12} {', '.join(f'{count:,} {word}' for word, count in counts.items())}")
    growth, most = result["growth_bytes"] / 2**20, result["most_bytes_of_a_case"] / 2**20
    print(f"memory       {growth:+.1f} MiB over the run, a case at most {most:.0f} MiB")
    print(f"time         a case at most {result['most_seconds_of_a_case']:.1f} s")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for fuzz.json and findings; made if needed")
    parser.add_argument("--cases", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument(
        "--replay", type=Path, default=None, metavar="FOLDER", help="read its files first, one folder a kind"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
