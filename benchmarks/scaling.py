"""What training takes on GPUs that are not at hand: hours and memory, predicted from operations and bytes that are counted.

    python -m benchmarks.scaling                                         # prints the tables
    python -m benchmarks.scaling --measured results/training.json        # with a GPU's measured rates in place of assumed ones
    python -m benchmarks.scaling … --docs docs/scaling.md                # and writes them there, between the marks

A step takes as long as its operations at the GPU's matmul rate times a utilisation, and the sum of gradients over GPUs takes as long as
its bytes over the links: hidden behind the backward pass at best, after it at worst. The utilisation is carried over from a fit to the
measured points (`benchmarks.cost_fit`), up and down by its largest error, until `python -m benchmarks.training` has measured the paper-size
model on a GPU and --measured names its file; without measured points it is assumed. Beside the document, all numbers go to
scaling/predictions.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.cost_fit import CostFit, fit_costs
from lact_asr.atomic_files import write_json, write_text
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.sample_rate import SAMPLE_RATE_HZ

BEGIN, END = "<!-- written by python -m benchmarks.scaling -->", "<!-- end -->"
PREDICTIONS = Path("scaling", "predictions.json")  # beside the document
PATHS = {"Triton kernels": True, "plain PyTorch": False}  # who computes fast weights: whether by kernels
COUNTED_SECONDS = (2, 12)
OURS, PAPER = "hybrid", "paper"
GPU_COUNTS = (1, 8, 64)
GPUS_A_MACHINE = 8
STATE_BYTES = 16  # a parameter's weight, gradient and two moments of AdamW in float32
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Activations:
    """What waits for the backward pass of an utterance, in bfloat16 where autocast has it.

    Attributes:
        path: "Triton kernels" or "plain PyTorch", for fast weights.
        checkpointing: only inputs of blocks and of front-end layers are kept, and one of these is computed again at a time.
        fixed_bytes: for an utterance of any length: its own fast weights.
        bytes_per_second: and for a second of it.
    """

    path: str
    checkpointing: bool
    fixed_bytes: float
    bytes_per_second: float

    def bytes_of(self, seconds: float) -> float:
        return self.fixed_bytes + self.bytes_per_second * seconds


@dataclass(frozen=True)
class Model:
    """What is counted of a model.

    Attributes:
        parameters, blocks: their numbers.
        flops: operations of a training step, for one utterance of the corpus's mean length.
        activations: for each path, without and with gradient checkpointing.
    """

    parameters: int
    blocks: int
    flops: float
    activations: tuple[Activations, ...]


@dataclass(frozen=True)
class Assumptions:
    """What nothing here has measured.

    Attributes:
        corpus_hours, epochs, utterance_seconds: LibriSpeech's 960 h, and its mean utterance.
        utterances: a batch of each GPU.
        matmul_flops_per_second: of a large bfloat16 product on an H200.
        utilisation: lowest and highest share of it that a step reaches.
        copy_bytes_per_second: read and written in the GPU's memory.
        link_bytes_per_second: that a GPU's all-reduce reaches within a machine (NVLink), and between machines.
        loader_speed: seconds of audio that a CPU core decodes in a second.
        gpu_bytes: memory of an H200.
        usable: share of it for what is counted here; the rest is for what comes and goes.
        source: where rate and utilisation come from.
    """

    corpus_hours: float = 960.0
    epochs: int = 25
    utterance_seconds: float = 12.3
    utterances: int = 16
    matmul_flops_per_second: float = 790e12
    utilisation: tuple[float, float] = (0.2, 0.4)
    copy_bytes_per_second: float = 4.3e12
    link_bytes_per_second: tuple[float, float] = (300e9, 40e9)
    loader_speed: float = 300.0
    gpu_bytes: float = 141e9
    usable: float = 0.8
    source: str = "assumed"


@dataclass(frozen=True)
class Prediction:
    """For one number of GPUs; ranges are (best, worst).

    Attributes:
        hours: for all epochs.
        audio_hours_per_hour: all GPUs together.
        loader_cores: that decode so much, for each GPU.
        ddp_bytes, fsdp_bytes: weights, gradients and optimiser state on each GPU, with what is gathered for a while.
    """

    gpus: int
    hours: tuple[float, float]
    audio_hours_per_hour: tuple[float, float]
    loader_cores: tuple[float, float]
    ddp_bytes: float
    fsdp_bytes: float


def count_model(config_path: Path, utterance_seconds: float) -> Model:
    """Count the model of a configuration file; a minute or two."""
    import torch

    from benchmarks.counts import ModelCounts, of_seconds
    from benchmarks.training_systems import number_of_parameters, our_config
    from lact_asr import HybridASRForCTC
    from lact_asr.training.block_options import checkpoint_activations

    config = our_config(str(config_path), 32)

    def checkpointed() -> HybridASRForCTC:
        model = HybridASRForCTC(config)
        checkpoint_activations(model)
        return model

    activations = []
    for path, kernels in PATHS.items():
        kept, inputs = (
            _bytes_by_seconds(ModelCounts(build, kernels, torch.bfloat16).saved_bytes)
            for build in (lambda: HybridASRForCTC(config), checkpointed)
        )
        sparing = inputs + kept / config.num_hidden_layers
        activations += [Activations(path, False, *kept.tolist()), Activations(path, True, *sparing.tolist())]
    plain = ModelCounts(lambda: HybridASRForCTC(config))
    return Model(
        parameters=number_of_parameters(plain.model),
        blocks=config.num_hidden_layers,
        flops=of_seconds(plain.flops)(utterance_seconds),
        activations=tuple(activations),
    )


def _bytes_by_seconds(saved_bytes: Callable[[int], int]) -> np.ndarray:
    """Bytes of an utterance without length, and of each second, by two counted lengths: fused attention keeps nothing quadratic."""
    short, long = COUNTED_SECONDS
    counted = [saved_bytes(seconds * SAMPLE_RATE_HZ) for seconds in COUNTED_SECONDS]
    slope = (counted[1] - counted[0]) / (long - short)
    return np.array([counted[0] - slope * short, slope])


def predict(model: Model, assumed: Assumptions, gpus: int) -> Prediction:
    """The cost model."""
    steps = assumed.corpus_hours * 3600 * assumed.epochs / (gpus * assumed.utterances * assumed.utterance_seconds)
    link = assumed.link_bytes_per_second[gpus > GPUS_A_MACHINE]
    # A ring sends each gradient out and its sum back, but for a GPU's own part.
    all_reduce = 2 * GRADIENT_BYTES * model.parameters * (gpus - 1) / gpus / link
    slow, fast = (
        assumed.utterances * model.flops / (assumed.matmul_flops_per_second * share) for share in assumed.utilisation
    )
    hours = steps * max(fast, all_reduce) / 3600, steps * (slow + all_reduce) / 3600
    audio = tuple(assumed.corpus_hours * assumed.epochs / value for value in hours)
    states = STATE_BYTES * model.parameters
    buckets = GRADIENT_BYTES * model.parameters if gpus > 1 else 0
    # Of FSDP2's blocks one runs while the next is on its way.
    gathered = 2 * GRADIENT_BYTES * model.parameters / model.blocks if gpus > 1 else 0
    return Prediction(
        gpus=gpus,
        hours=hours,
        audio_hours_per_hour=audio,
        loader_cores=tuple(value / gpus / assumed.loader_speed for value in audio),
        ddp_bytes=states + buckets,
        fsdp_bytes=states / gpus + gathered,
    )


def longest_batch(activations: Activations, assumed: Assumptions, state_bytes: float) -> float:
    """Seconds of audio, in utterances of mean length, that a GPU has memory for."""
    room = assumed.usable * assumed.gpu_bytes - state_bytes
    return assumed.utterance_seconds * int(room / activations.bytes_of(assumed.utterance_seconds))


def with_measured_rates(assumed: Assumptions, measured: dict) -> Assumptions:
    """Rate and utilisation of the paper-size model on a GPU in place of assumed ones, where ``measured`` has them."""
    rows = [row for row in measured["rows"] if (row["size"], row["system"]) == (PAPER, OURS)]
    if measured["device"].startswith("CPU") or not rows:
        return assumed
    utilisation = rows[0]["utilisation"]
    return dataclasses.replace(
        assumed,
        matmul_flops_per_second=measured["matmul_flops_per_second"],
        utilisation=(utilisation, utilisation),
        source=f"measured on one {measured['device']}, commit {measured['commit']}",
    )


def with_fitted_utilisation(assumed: Assumptions, model: Model, fit: CostFit) -> Assumptions:
    """What the fit says of a batch on the GPU, in place of an assumed utilisation; the memory is that of Triton's path and of the states."""
    activations = assumed.utterances * model.activations[0].bytes_of(assumed.utterance_seconds)
    flops, rate = assumed.utterances * model.flops, assumed.matmul_flops_per_second
    seconds = fit.seconds(flops, activations + STATE_BYTES * model.parameters, rate, assumed.copy_bytes_per_second)
    share = flops / seconds / rate
    return dataclasses.replace(
        assumed,
        utilisation=(share / (1 + fit.largest_error), min(1.0, share * (1 + fit.largest_error))),
        source="the rate is assumed, the share carried over from the fit below",
    )


def tables(content: dict) -> Iterator[str]:
    """Markdown lines of ``predictions.json``."""
    model, assumed = read_model(content["model"]), Assumptions(**content["assumptions"])
    low, high = (f"{share:.0%}" for share in assumed.utilisation)
    yield (
        f"**Prediction**, paper-size model ({model.parameters / 1e6:.0f} M parameters), CTC, {assumed.corpus_hours:.0f} h × "
        f"{assumed.epochs} epochs, batches of {assumed.utterances} × {assumed.utterance_seconds:g} s a GPU, at {low} to {high} of "
        f"{assumed.matmul_flops_per_second / 1e12:.0f} TFLOP/s ({assumed.source}):"
    )
    yield ""
    yield "| H200s | hours | audio hours an hour | loader cores a GPU | weights, gradients, optimiser a GPU: DDP | FSDP2 |"
    yield "|---|---|---|---|---|---|"
    for row in content["predictions"]:
        ranges = (row["hours"], row["audio_hours_per_hour"][::-1], row["loader_cores"][::-1])
        memory = (row["ddp_bytes"], row["fsdp_bytes"])
        yield f"| {row['gpus']} | {' | '.join(map(_range, ranges))} | {' | '.join(map(_gigabytes, memory))} |"
    yield ""
    yield (
        f"Counted: {model.flops / 1e12:.2f} TFLOP an utterance ({3600 * model.flops / assumed.utterance_seconds / 1e12:.0f} an hour of "
        "audio). Activations, in bfloat16 autocast, come on top of the states:"
    )
    yield ""
    yield from _memory_table(model, assumed, max(row["ddp_bytes"] for row in content["predictions"]))
    if content.get("fit"):
        yield ""
        yield _fit_line(CostFit(**content["fit"]), assumed)
    for measured in content["measured"]:
        yield ""
        yield from _measured_table(measured)


def _fit_line(fit: CostFit, assumed: Assumptions) -> str:
    return (
        f"**Fitted** to the {fit.points} steps measured below: a step takes {fit.operations:.2f} times its operations at the matmul rate and "
        f"{fit.passes:.1f} passes over its peak memory at the copy rate ({fit.median_error:.0%} off in the median, {fit.largest_error:.0%} at most). "
        f"Carried over to a GPU with {assumed.matmul_flops_per_second / 1e12:.0f} TFLOP/s and {assumed.copy_bytes_per_second / 1e12:.1f} TB/s, "
        "by its largest error up and down, unless a GPU was measured."
    )


def read_model(content: dict) -> Model:
    """Of ``predictions.json``."""
    return Model(**{**content, "activations": tuple(Activations(**entry) for entry in content["activations"])})


def _memory_table(model: Model, assumed: Assumptions, state_bytes: float) -> Iterator[str]:
    batch = f"{assumed.utterances} × {assumed.utterance_seconds:g} s"
    yield (
        f"| fast weights by | `--gradient_checkpointing` | an utterance | a second of it | a batch of {batch} | with states (DDP) | "
        f"longest batch in {assumed.usable:.0%} of {assumed.gpu_bytes / 1e9:.0f} GB |"
    )
    yield "|---|---|---|---|---|---|---|"
    for entry in model.activations:
        kept = assumed.utterances * entry.bytes_of(assumed.utterance_seconds)
        memory = (entry.fixed_bytes, entry.bytes_per_second, kept, kept + state_bytes)
        yield (
            f"| {entry.path} | {'yes' if entry.checkpointing else 'no'} | {' | '.join(map(_gigabytes, memory))} | "
            f"{longest_batch(entry, assumed, state_bytes):,.0f} s |"
        )


def _measured_table(measured: dict) -> Iterator[str]:
    yield (
        f"**Measured** on {measured['device']} ({measured['threads']} threads), {measured['date']}, commit {measured['commit'][:7]}, "
        f"matmul {measured['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s (`{measured['command']}`):"
    )
    yield ""
    yield "| size | model | parameters | data | forward | backward | optimiser | audio hours an hour | utilisation | memory | parameters × frames a second |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in measured["rows"]:
        parts = (1e3 * row[f"{part}_seconds"] for part in ("data", "forward", "backward", "optimiser"))
        yield (
            f"| {row['size']} | {row['system']} | {row['parameters'] / 1e6:.2f} M | {' | '.join(f'{part:.0f} ms' for part in parts)} | "
            f"{row['audio_hours_per_hour']:.1f} | {row['utilisation']:.0%} | {_gigabytes(row['peak_bytes'])} | "
            f"{row['parameter_frames_per_second']:.2e} |"
        )
    yield ""
    for ratio in measured["ours_over_peer"]:
        yield (
            f"{ratio['size']}: {ratio['median']:.2f} times the peer's parameters × frames a second (20 to 80 % of "
            f"{ratio['steps']} paired steps: {ratio['p20']:.2f} to {ratio['p80']:.2f})."
        )


def _range(values: Sequence[float]) -> str:
    """Two significant digits."""
    low, high = (f"{float(f'{value:.2g}'):,.15g}" for value in values)
    return low if low == high else f"{low} to {high}"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value < 1e10 else f"{value / 1e9:.0f} GB"


def replaced_block(document: str, lines: list[str]) -> str:
    """The document with new lines between the marks.

    Raises:
        InputError: it has no marks.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"The document has no lines {BEGIN} and {END} to write between.")
    return f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{after}"


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measured", type=Path, action="append", default=[], metavar="TRAINING.JSON",
        help="of python -m benchmarks.training; may be repeated",
    )  # fmt: skip
    parser.add_argument("--config_path", type=Path, default=Path("configs/hybrid_asr_config.json"))
    parser.add_argument("--docs", type=Path, help="a document with marks to write between, e.g. docs/scaling.md")
    args = parser.parse_args(argv)
    measured = [_read_measured(path) for path in args.measured]
    assumed, fit = Assumptions(), fit_costs(measured)
    model = count_model(args.config_path, assumed.utterance_seconds)
    if fit is not None:
        assumed = with_fitted_utilisation(assumed, model, fit)
    for content in measured:  # a GPU's own figures count more than what is carried over from CPUs
        assumed = with_measured_rates(assumed, content)
    content = {
        "model": asdict(model),
        "assumptions": asdict(assumed),
        "predictions": [asdict(predict(model, assumed, gpus)) for gpus in GPU_COUNTS],
        "fit": None if fit is None else asdict(fit),
        "measured": measured,
    }
    lines = list(tables(json.loads(json.dumps(content))))
    print("\n".join(lines))
    if args.docs is not None:
        document = replaced_block(args.docs.read_text(encoding="utf-8"), lines)
        (args.docs.parent / PREDICTIONS).parent.mkdir(exist_ok=True)
        write_json(args.docs.parent / PREDICTIONS, content)
        write_text(args.docs, document)
    return 0


def _read_measured(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"copy_bytes_per_second": content.get("copy_bytes_per_second")} | {
            name: content[name]
            for name in (
                "device",
                "date",
                "commit",
                "command",
                "threads",
                "matmul_flops_per_second",
                "rows",
                "ours_over_peer",
            )
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a training.json of python -m benchmarks.training ({error}).") from None


if __name__ == "__main__":
    sys.exit(main())
