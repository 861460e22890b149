"""Kill the transcription of a corpus again and again, resume it each time, and compare its file with that of a run that was left alone.

    python -m benchmarks.kill_transcription --output_dir benchmarks/results/kill_transcription --checkpoint demo_output/model/best_model.pt \\
      --data_dir demo_output/corpus --subset train-generated --max_samples 1000

Flags that are not listed below go to the transcription (`inference/hybrid_asr_inference.py --help`). One process transcribes everything; others,
one after another, go on with another file by --resume and are sent SIGKILL after random numbers of results, in the middle of whatever they do.
In the end both files must be equal, byte for byte, but for the seconds of compute. Writes kill_transcription.json; exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.forked_command import ForkedCommand, allow_forks
from lact_asr.atomic_files import write_json
from lact_asr.errors import InputError, exit_on_input_error

_TIMES = re.compile(rb'"compute_seconds": [0-9.e-]+')
_LONGEST_DELAY_SECONDS = 0.05


class Transcription(ForkedCommand):
    """A process that transcribes into a file, where others may have begun."""

    def __init__(self, flags: Sequence[str], path: Path) -> None:
        from lact_asr.inference.hybrid_asr_inference import main as transcribe

        self.path = path
        flags = [*flags, "--output", str(path), "--resume"]
        super().__init__("the transcription", transcribe, flags, path.with_suffix(".txt"))

    def kill_after(self, lines: int, delay_seconds: float) -> None:
        """SIGKILL, so many seconds after its file has so many whole lines.

        Raises:
            InputError: it came to its end before.
        """
        self.wait_for(lambda: whole_lines(self.path) >= lines, seconds=math.inf)
        time.sleep(delay_seconds)
        if not self.kill():
            raise InputError(f"{self.name} ended before it was killed, see {self.output}.")


def whole_lines(path: Path) -> int:
    """Lines of a file that end; 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def without_times(path: Path) -> list[bytes]:
    """Lines of a results file with all seconds of compute alike."""
    return _TIMES.sub(b'"compute_seconds": 0', path.read_bytes()).splitlines(keepends=True)


def kill_and_compare(flags: Sequence[str], folder: Path, kills: int, seed: int) -> dict:
    """One run undisturbed and one killed so many times; returns what stands in the results file.

    Raises:
        InputError: there are fewer results than kills, or a run fails.
    """
    undisturbed = Transcription(flags, folder / "undisturbed.jsonl")
    undisturbed.finish()
    results = whole_lines(undisturbed.path) - 1  # the first line holds the settings
    if results <= kills:
        raise InputError(f"{results} results are too few for {kills} kills.")
    rng, path, resumed_from = random.Random(seed), folder / "killed.jsonl", []
    early = range(1, max(kills + 1, 3 * results // 4))  # nearer to its end a run may be over before it is killed
    for lines in tqdm(sorted(rng.sample(early, kills)), "killing", unit="kill"):
        Transcription(flags, path).kill_after(lines + 1, rng.uniform(0, _LONGEST_DELAY_SECONDS))
        resumed_from.append(whole_lines(path) - 1)
    Transcription(flags, path).finish()
    expected, actual = without_times(undisturbed.path), without_times(path)
    pairs = enumerate(itertools.zip_longest(expected, actual), 1)
    return {
        "results": results,
        "kills": kills,
        "resumed_from": resumed_from,
        "differing_lines": [number for number, (one, other) in pairs if one != other],
    }


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Transcribe, kill, compare, report; returns the exit code."""
    arguments, flags = _parse(argv)
    allow_forks()
    import torch

    import lact_asr.inference.inference_setup  # noqa: F401 - and everything imported
    from benchmarks.timing import environment

    started = time.monotonic()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for path in arguments.output_dir.glob("*.jsonl"):  # of an earlier run
        path.unlink()
    result = kill_and_compare(flags, arguments.output_dir, arguments.kills, arguments.seed)
    result |= {"flags": flags, "seconds": round(time.monotonic() - started), **environment(torch.device("cpu"))}
    write_json(arguments.output_dir / "kill_transcription.json", result)
    print(f"results      {result['results']:,}")
    print(f"kills        {result['kills']}, resumed from results {', '.join(map(str, result['resumed_from']))}")
    print(f"differences  {len(result['differing_lines'])} lines, seconds of compute left aside")
    return 1 if result["differing_lines"] else 0


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill_transcription",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for kill_transcription.json and both files")
    parser.add_argument("--kills", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    sys.exit(main())
