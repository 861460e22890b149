"""What recordings of a minute to an hour cost: time for a second of audio, and memory, beside a Wav2Vec2 of equal size.

    python -m benchmarks.long_recordings --config_path configs/tiny.json --output_dir OUT

Random weights serve: nothing here depends on what is recognised. Every measurement has a process of its own, on one thread;
seconds are CPU seconds, which other work on the machine does not change, and memory is what the process took at its peak above what
it had before. A system is not tried on longer recordings once one did not fit into --max_gib, or where the next would take more
than --max_seconds, with attention to the whole recording growing as its square.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2ForCTC, pipeline

from benchmarks.timing import environment, first_line
from benchmarks.training_systems import our_config, peer_config
from lact_asr import HybridASRForCTC, HybridASRProcessor
from lact_asr.atomic_files import write_json
from lact_asr.audio import SAMPLE_RATE_HZ, read_audio
from lact_asr.checkpoint import LoadedCheckpoint
from lact_asr.errors import exit_on_input_error
from lact_asr.inference.decoding import GreedyDecoder
from lact_asr.inference.long_audio.long_recordings import Cutting, PiecewiseRecogniser, read_or_defer
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.results.summary import markdown_table
from lact_asr.text import build_vocabulary

CHUNK_SECONDS, OVERLAP_SECONDS = 30.0, 5.0  # of the Transformers pipeline
Transcribe = Callable[[Path], object]


@dataclass(frozen=True)
class Cost:
    """Of one system on one recording; None, with the reason, where it did not fit."""

    system: str
    minutes: float
    seconds_a_second: float | None = None
    peak_bytes: int | None = None
    reason: str = ""


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write it, the figures and the plot."""
    options = _parse(argv)
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    costs = []
    systems = make_systems(options.config_path)
    for name, transcribe in systems.items():
        for minutes in sorted(options.minutes):
            shorter = [cost for cost in costs if cost.system == name]
            if shorter and not is_worth_trying(shorter[-1], minutes, options.max_seconds):
                break
            path = write_recording(options.output_dir / f"{minutes:g}min.wav", minutes)
            costs.append(in_own_process(name, transcribe, path, minutes, options.max_gib))
            print(costs[-1], file=sys.stderr, flush=True)
    report = table(costs)
    print(report)
    (options.output_dir / "table.md").write_text(report + "\n", encoding="utf-8")
    content = {
        **environment(torch.device("cpu")),
        "config": options.config_path,
        "costs": [asdict(cost) for cost in costs],
    }
    write_json(options.output_dir / "long_recordings.json", content)
    plot(costs, options.output_dir / "long_recordings.png")
    for minutes in options.minutes:
        (options.output_dir / f"{minutes:g}min.wav").unlink(missing_ok=True)
    return 0


def is_worth_trying(last: Cost, minutes: float, max_seconds: float) -> bool:
    """Whether a system that was measured on a shorter recording can be expected to take no more than so many CPU seconds."""
    if last.seconds_a_second is None:
        return False
    growth = (minutes / last.minutes) ** (2 if "whole" in last.system else 1)
    return 60 * last.minutes * last.seconds_a_second * growth <= max_seconds


def make_systems(config_path: str) -> dict[str, Transcribe]:
    """Name -> what transcribes a file; random weights."""
    vocabulary = build_vocabulary()
    ours = our_config(config_path, len(vocabulary))
    torch.manual_seed(0)
    processor = HybridASRProcessor.from_vocabulary(vocabulary)
    recogniser = Recogniser(
        LoadedCheckpoint(HybridASRForCTC(ours).eval(), processor), GreedyDecoder(vocabulary, ours.ctc_blank_id)
    )
    piecewise = PiecewiseRecogniser(recogniser, Cutting())
    peer = Wav2Vec2ForCTC(peer_config(ours)).eval()
    chunked = pipeline(
        "automatic-speech-recognition", model=peer, tokenizer=processor.tokenizer, device="cpu",
        feature_extractor=processor.feature_extractor, chunk_length_s=CHUNK_SECONDS, stride_length_s=OVERLAP_SECONDS,
    )  # fmt: skip

    @torch.no_grad()
    def whole(path: Path) -> object:
        inputs = processor(read_audio(path), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return processor.batch_decode(peer(inputs.input_values).logits.argmax(-1))

    return {
        "hybrid, cut at silence": lambda path: piecewise([read_or_defer(path, CHUNK_SECONDS)]),
        "hybrid, whole": lambda path: recogniser([read_audio(path)]),
        "Wav2Vec2ForCTC, whole": whole,
        "Wav2Vec2ForCTC, chunks of 30 s": lambda path: chunked(read_audio(path)),
    }


def write_recording(path: Path, minutes: float) -> Path:
    """Noise as loud as speech for four seconds at a time, with pauses of one second; written unless it is there."""
    if not path.exists():
        generator = np.random.default_rng(0)
        turn = np.append(np.full(4 * SAMPLE_RATE_HZ, 0.1), np.full(SAMPLE_RATE_HZ, 1e-4))
        with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1) as file:
            for _ in range(round(minutes * 12)):
                file.write(turn * generator.standard_normal(len(turn)))
    return path


def in_own_process(name: str, transcribe: Transcribe, path: Path, minutes: float, max_gib: float) -> Cost:
    """Fork, so that peaks are apart and one that does not fit ends no other; models are shared, not copied."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    arguments = (sender, transcribe, path, max_gib)
    process = multiprocessing.get_context("fork").Process(target=_measure, args=arguments)
    process.start()
    sender.close()
    try:
        seconds, peak, reason = receiver.recv()
    except EOFError:
        seconds, peak, reason = None, None, "the process was killed"
    process.join()
    return Cost(name, minutes, None if seconds is None else seconds / (60 * minutes), peak, reason)


def _measure(sender, transcribe: Transcribe, path: Path, max_gib: float) -> None:
    before = _memory_bytes("VmSize:"), _memory_bytes("VmRSS:")
    resource.setrlimit(resource.RLIMIT_AS, (before[0] + int(max_gib * 2**30),) * 2)
    started = time.process_time()
    try:
        transcribe(path)
    except (MemoryError, RuntimeError) as error:  # PyTorch's allocator raises the latter
        sender.send((None, None, f"does not fit into {max_gib:g} GiB ({first_line(error)[:60]} …)"))
        return
    sender.send((time.process_time() - started, _memory_bytes("VmHWM:") - before[1], ""))


def _memory_bytes(field: str) -> int:
    """Of this process, as Linux counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def table(costs: list[Cost]) -> str:
    """Markdown: a row for each recording's length, a column for each system: CPU seconds for a second of audio, peak MiB."""
    systems = list(dict.fromkeys(cost.system for cost in costs))
    cells = {(cost.system, cost.minutes): _cell(cost) for cost in costs}
    rows = [
        [f"{minutes:g}", *(cells.get((system, minutes), "–") for system in systems)]
        for minutes in sorted({cost.minutes for cost in costs})
    ]
    return markdown_table([["minutes", *systems], *rows])


def _cell(cost: Cost) -> str:
    if cost.seconds_a_second is None:
        return cost.reason.partition(" (")[0]
    return f"{cost.seconds_a_second:.4f} s, {cost.peak_bytes / 2**20:.0f} MiB"


def plot(costs: list[Cost], path: Path) -> None:
    """Both figures against length, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for system in dict.fromkeys(cost.system for cost in costs):
        fitting = [cost for cost in costs if cost.system == system and cost.seconds_a_second is not None]
        minutes = [cost.minutes for cost in fitting]
        left.loglog(minutes, [cost.seconds_a_second for cost in fitting], "o-", label=system)
        right.loglog(minutes, [cost.peak_bytes / 2**20 for cost in fitting], "o-", label=system)
    left.set(xlabel="minutes of audio", ylabel="CPU seconds for a second of audio")
    right.set(xlabel="minutes of audio", ylabel="peak memory, MiB above the loaded models")
    left.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_recordings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("--config_path", default="configs/tiny.json")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 5, 10, 20, 60], help="default: %(default)s")
    parser.add_argument(
        "--chunked_minutes",
        type=float,
        default=60,
        help="longest recording for the chunks of Transformers (default: 60)",
    )
    parser.add_argument("--max_gib", type=float, default=4.0, help="memory of a measurement (default: %(default)s)")
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=300,
        help="CPU time that a measurement may be expected to take (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
