"""What a training step costs, part by part, beside Transformers' Wav2Vec2ForCTC of equal parameter count in the same run.

    python -m benchmarks.training --output_dir benchmarks/results/training
    python -m benchmarks.training --data_dir LIBRISPEECH --subset train-clean-100 --utterances 16
    python -m benchmarks.training --device cpu --sizes tiny --cpu_time        (one core that other work shares)

Both models train on the same batches with the same optimiser, step by step in turn, after two steps that warm up. By default the
batches are noise bursts drawn from a seed (no audio library is needed); with --data_dir, a corpus. Reports medians of the
parts of a step (data: reading, normalising, padding, copying; forward pass; backward pass; optimiser with clipping), hours of audio
an hour, the share of the device's matmul rate that the model's operations make ("utilisation"; padding and recomputed operations do
not count; rate measured in the same run), peak memory, and parameters × frames a second, by which models of
different frame rates can be compared. bfloat16 on a GPU, float32 on a CPU. Writes training.json and training.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.timing import copy_bytes_per_second, environment, first_line, matmul_flops_per_second
from benchmarks.training_batches import Batch, corpus_batches, synthetic_batches
from benchmarks.training_systems import OURS, PARTS, PEER, Clock, Laps, System, build_system, our_config
from lact_asr.atomic_files import write_csv, write_json
from lact_asr.errors import exit_on_input_error
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.shared_flags import add_dataset_type
from lact_asr.text import build_vocabulary

SIZES = {"tiny": "configs/tiny.json", "small": "configs/small.json", "paper": "configs/hybrid_asr_config.json"}
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Step:
    """One training step of one system.

    Attributes:
        data_seconds, forward_seconds, backward_seconds, optimiser_seconds: of its parts.
        audio_seconds, frames, flops: of the batch, without padding.
    """

    data_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimiser_seconds: float
    audio_seconds: float
    frames: int
    flops: float

    @property
    def seconds(self) -> float:
        return self.data_seconds + self.forward_seconds + self.backward_seconds + self.optimiser_seconds


@dataclass(frozen=True)
class Row:
    """A line of the results: one system at one size, medians over steps.

    Attributes:
        size, system, parameters, frame_rate_hz: which model.
        data_seconds … step_seconds: of a step and its parts.
        audio_hours_per_hour: how many times faster than real time it trains.
        flops_per_audio_hour: operations that training on an hour of these utterances takes.
        utilisation: operations a second over the device's matmul rate.
        parameter_frames_per_second: parameters × frames trained on in a second.
        peak_bytes: what model, gradients, optimiser and activations took at most; on a CPU sampled, and only roughly right.
    """

    size: str
    system: str
    parameters: int
    frame_rate_hz: float
    data_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimiser_seconds: float
    step_seconds: float
    audio_hours_per_hour: float
    flops_per_audio_hour: float
    utilisation: float
    parameter_frames_per_second: float
    peak_bytes: int


def median_row(size: str, system: System, steps: list[Step], matmul_rate: float) -> Row:
    """All steps of a system in one line."""

    def median(value) -> float:
        return statistics.median(map(value, steps))

    return Row(
        size=size,
        system=system.name,
        parameters=system.parameters,
        frame_rate_hz=median(lambda step: step.frames / step.audio_seconds),
        **{f"{part}_seconds": median(lambda step, part=part: getattr(step, f"{part}_seconds")) for part in ("data", *PARTS)},
        step_seconds=median(lambda step: step.seconds),
        audio_hours_per_hour=median(lambda step: step.audio_seconds / step.seconds),
        flops_per_audio_hour=median(lambda step: 3600 * step.flops / step.audio_seconds),
        utilisation=median(lambda step: step.flops / step.seconds / matmul_rate),
        parameter_frames_per_second=system.parameters * median(lambda step: step.frames / step.seconds),
        peak_bytes=system.peak_bytes,
    )  # fmt: skip


def time_steps(
    systems: list[System], batches: Iterator[Batch], device: torch.device, count: int, clock: Clock, bar: tqdm
) -> dict[str, list[Step]]:
    """``count`` steps of each system on the same batches, in turn; who goes first alternates."""
    steps: dict[str, list[Step]] = {system.name: [] for system in systems}
    for number in range(count):
        laps = Laps(device, clock)
        batch = to_device(next(batches), device)
        laps.mark()
        (data_seconds,) = laps.seconds()
        audio_seconds = int(batch["attention_mask"].sum()) / SAMPLE_RATE_HZ
        for system in systems if number % 2 == 0 else reversed(systems):
            parts = {f"{part}_seconds": seconds for part, seconds in system.step(batch, clock).items()}
            frames, flops = system.frames(batch), system.flops(batch)
            steps[system.name].append(
                Step(data_seconds, **parts, audio_seconds=audio_seconds, frames=frames, flops=flops)
            )
            bar.update()
    return steps


def clock_of(args: argparse.Namespace) -> Clock:
    """CPU time of this process counts little of what other work beside it costs."""
    return time.process_time if args.cpu_time else time.perf_counter


def to_device(batch: Batch, device: torch.device) -> Batch:
    """What the models take, on their device."""
    return {name: batch[name].to(device, non_blocking=True) for name in ("input_values", "attention_mask", "labels")}


def warmed_up(name: str, args: argparse.Namespace, config, batches: Iterator[Batch], device: torch.device) -> System:
    """A system after its first steps, with the memory that these took."""
    from lact_asr.inference.robustness.peak_memory import PeakMemory, memory_in_use, release_freed_memory

    release_freed_memory()
    before = memory_in_use(device)
    system = build_system(name, config, device, args.gradient_checkpointing, args.compile)
    release_freed_memory()
    with PeakMemory(device) as memory:
        for _ in range(WARM_UP_STEPS):
            system.step(to_device(next(batches), device))
    system.peak_bytes = memory.peak - before
    return system


def run_size(
    size: str, args: argparse.Namespace, device: torch.device, matmul_rate: float, bar: tqdm
) -> tuple[list[Row], dict]:
    """Both systems at one size: their lines, and how they compare step by step."""
    processor, batches = make_batches(args)
    config = our_config(SIZES[size], len(processor.vocabulary))
    bar.set_description(f"{size}, warming up")
    systems = [warmed_up(name, args, config, batches, device) for name in (OURS, PEER)]
    bar.set_description(size)
    steps = time_steps(systems, batches, device, args.steps, clock_of(args), bar)
    rows = [median_row(size, system, steps[system.name], matmul_rate) for system in systems]
    sizes = [system.parameters for system in systems]
    ratios = [
        (sizes[0] * ours.frames / ours.seconds) / (sizes[1] * peer.frames / peer.seconds)
        for ours, peer in zip(steps[OURS], steps[PEER], strict=True)
    ]
    p20, *_, p80 = statistics.quantiles(ratios, n=5)
    ratio = {"size": size, "median": statistics.median(ratios), "p20": p20, "p80": p80, "steps": len(ratios)}
    return rows, ratio


def make_batches(args: argparse.Namespace) -> tuple[HybridASRProcessor, Iterator[Batch]]:
    """The same batches for every size."""
    if args.data_dir is not None:
        return corpus_batches(args)
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary())
    return processor, synthetic_batches(processor, args.utterances, args.seconds, args.seed)


def table(rows: list[Row]) -> Iterator[str]:
    """The lines that are printed."""
    parts = ("data", *PARTS, "step")
    head = f"{'size':6} {'system':15} {'params':>8} {'frames/s':>8} " + " ".join(f"{part:>9}" for part in parts)
    yield f"{head} {'audio h/h':>10} {'utilisation':>11} {'memory':>9} {'param x frames/s':>17}"
    for row in rows:
        times = " ".join(f"{1e3 * getattr(row, f'{part}_seconds'):6.0f} ms" for part in parts)
        yield (
            f"{row.size:6} {row.system:15} {row.parameters / 1e6:6.1f} M {row.frame_rate_hz:8.1f} {times}"
            f" {row.audio_hours_per_hour:10.1f} {row.utilisation:11.1%} {row.peak_bytes / 1e9:6.2f} GB"
            f" {row.parameter_frames_per_second:17.3g}"
        )


def write_results(folder: Path, facts: dict, rows: list[Row], ratios: list[dict], failures: list[str]) -> None:
    """training.json and training.csv, each written beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "rows": [asdict(row) for row in rows], "ours_over_peer": ratios, "failures": failures}
    write_json(folder / "training.json", content)
    write_csv(folder / "training.csv", list(Row.__dataclass_fields__), map(asdict, rows))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/training"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="default: all three")
    parser.add_argument("--utterances", type=int, default=16, help="a batch (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=12.0,
        help="of the longest utterance; longer ones are cropped (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=20, help="timed steps of each system, 2 or more (default: %(default)s)"
    )
    parser.add_argument("--data_dir", type=Path, help="a corpus to train on, laid out as --dataset_type says")
    add_dataset_type(parser)
    parser.add_argument("--subset", default="train-clean-100", help="of --data_dir (default: %(default)s)")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="of both models' blocks and front ends")
    parser.add_argument("--compile", action="store_true", help="torch.compile both models' front ends and each block")
    parser.add_argument(
        "--cpu_time", action="store_true", help="on a CPU: time of this process, of one thread, instead of the clock's"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the batches (default: %(default)s)")
    return parser


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No CUDA device here. --device cpu measures this machine's CPU; its times mean nothing for a GPU.")
    if args.steps < 2:
        parser.error("--steps must be 2 or more")
    if args.cpu_time:
        torch.set_num_threads(1)  # threads that wait for each other count as work
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matmul_rate = matmul_flops_per_second(device, dtype, clock_of(args))
    facts = {
        **environment(device),
        "command": " ".join(["python -m benchmarks.training", *(sys.argv[1:] if argv is None else argv)]),
        "threads": torch.get_num_threads(),
        "matmul_flops_per_second": matmul_rate,
        "copy_bytes_per_second": copy_bytes_per_second(device),
        "utterances": args.utterances,
        "seconds": args.seconds,
        "data": "noise bursts" if args.data_dir is None else str(args.subset),
        "gradient_checkpointing": args.gradient_checkpointing,
        "compile": args.compile,
    }
    rows, ratios, failures = [], [], []
    with tqdm(total=2 * args.steps * len(args.sizes)) as bar:
        for size in args.sizes:
            try:
                size_rows, ratio = run_size(size, args, device, matmul_rate, bar)
                rows += size_rows
                ratios.append(ratio)
            except torch.OutOfMemoryError as error:  # one size must not lose the others
                failures.append(f"{size}: {first_line(error)}")
                tqdm.write(failures[-1])
            write_results(args.output_dir, facts, rows, ratios, failures)  # a run that is cut short keeps what it has
    print("\n".join(table(rows)))
    for ratio in ratios:
        print(
            f"{ratio['size']}: {ratio['median']:.2f} x the peer's parameters x frames a second ({ratio['p20']:.2f} to {ratio['p80']:.2f})"
        )
    print(f"matmul: {matmul_rate / 1e12:.2f} TFLOP/s; {args.output_dir}/training.json")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
