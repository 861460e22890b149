"""How fast one core reads and batches training audio, part by part, in seconds of audio a second.

    python -m benchmarks.data_loading --data_dir LIBRISPEECH --subset train-clean-100
    python -m benchmarks.data_loading --data_dir SHAR --dataset_type shar --subset train-clean-100 --speed_factors 0.9,1,1.1

One thread, no workers, no cache. Speeds are by CPU seconds of this process, so other work on the machine hardly matters, and
neither does the storage, which the wall seconds tell of. Flags of data and augmentation are those of training. Writes
data_loading.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from benchmarks.timing import environment
from lact_asr.atomic_files import write_json
from lact_asr.data.batching import SpeechDataLoader
from lact_asr.data.corpora import read_cut
from lact_asr.errors import exit_on_input_error
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary
from lact_asr.training.arguments import parse_arguments
from lact_asr.training.data_setup import join_training_corpora, load_training_corpora, make_training_loader

Seconds = tuple[float, float]  # of CPU and wall


def timed(call: Callable, *arguments: object) -> tuple[object, Seconds]:
    """The result of a call, and what it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call(*arguments)
    return result, (time.process_time() - cpu, time.perf_counter() - wall)


def measure_parts(loader: SpeechDataLoader, num_batches: int) -> tuple[dict[str, Seconds], float]:
    """What planning an epoch takes, and some of its batches, part by part and as training gets them; their seconds of audio."""
    dataset = loader.dataset
    batches, planning = timed(loader.plan.batches)
    taken: dict[str, list[Seconds]] = {"reading": [], "augmenting": [], "whole batches": []}
    audio_seconds = 0.0
    for batch in tqdm(batches[:num_batches], "batches"):
        cuts = [dataset.cuts[draw.index] for draw in batch]
        audio_seconds += sum(cut.duration for cut in cuts)
        waveforms, seconds = timed(list, map(read_cut, cuts))
        taken["reading"].append(seconds)
        if dataset.transform is not None:
            names = [cut.id for cut in cuts]
            taken["augmenting"].append(timed(list, map(dataset.transform, waveforms, names))[1])
        taken["whole batches"].append(timed(dataset.__getitem__, batch)[1])
    sums = {part: tuple(map(sum, zip(*each, strict=True))) for part, each in taken.items() if each}
    return {"planning an epoch": planning, **sums}, audio_seconds


def result_rows(seconds: dict[str, Seconds], audio_seconds: float) -> Iterator[dict]:
    """A row for each part; planning has no speed, as it is done once for all batches of an epoch."""
    for part, (cpu, wall) in seconds.items():
        row = {"part": part, "cpu_seconds": cpu, "wall_seconds": wall}
        yield row if part == "planning an epoch" else {**row, "times_real_time": audio_seconds / cpu}


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subset", required=True, help="of the corpus, e.g. train-clean-100")
    parser.add_argument("--num_batches", type=int, default=20, help="to read (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/data_loading"))
    own, training_flags = parser.parse_known_args(argv)
    torch.set_num_threads(1)
    unused = "--config_path - --output_dir - --cache_gigabytes 0"
    arguments = parse_arguments([*unused.split(), "--train_subset", own.subset, *training_flags])
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary())
    corpora = load_training_corpora(arguments)
    corpus = join_training_corpora(corpora, arguments, processor, lambda samples: samples // 200)
    loader = make_training_loader(corpus, arguments, processor, Accelerator(cpu=True))
    seconds, audio_seconds = measure_parts(loader, own.num_batches)
    rows = list(result_rows(seconds, audio_seconds))
    print(f"{corpus.name}: {audio_seconds:,.0f} s of audio in {min(own.num_batches, len(loader))} batches")
    for row in rows:
        speed = f"{row['times_real_time']:10,.0f} x real time" if "times_real_time" in row else ""
        print(f"{row['part']:20} {row['cpu_seconds']:8.2f} s CPU {row['wall_seconds']:8.2f} s {speed}")
    command = " ".join(["python -m benchmarks.data_loading", *(sys.argv[1:] if argv is None else argv)])
    own.output_dir.mkdir(parents=True, exist_ok=True)
    facts = {**environment(torch.device("cpu")), "command": command, "audio_seconds": audio_seconds}
    write_json(own.output_dir / "data_loading.json", {**facts, "results": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
