"""What test-time training costs on a CPU, and what adapting a batch at a time saves.

    python -m benchmarks.adaptation --checkpoint demo_output/model/best_model.pt --data_dir demo_output/corpus --subset test-generated

The same recordings are transcribed greedily in batches of several sizes, without and with entropy steps on norms and front end, these
with full gradients, with constant updates (--ttt_constant_updates), and with these and the lowest layer frozen
(--ttt_frozen_layers 1), which is the default. Times are CPU seconds of one thread from samples to text, medians over
repetitions in which every combination has its turn, so that other work on the machine slows all of them alike. Batches
are of similar durations, as those of the inference command. --seconds joins the recordings and cuts them anew: with nothing padded and
the same total of frames, what is left between batch sizes is the overhead of operators, whose share falls with the duration. Writes
adaptation.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.timing import environment
from lact_asr.atomic_files import write_json
from lact_asr.checkpoint import load_hybrid_checkpoint
from lact_asr.data.corpora import load_corpus
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.results.summary import markdown_table
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.utterances import corpus_utterances
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.shared_flags import add_checkpoint

PLAIN = "plain"
VARIANTS = (  # what follows the number of steps, whether updates are constant, and how many layers are frozen
    (", full gradients", False, 0),
    (", constant updates", True, 0),
    (", and a frozen layer", True, 1),
)


def read_recordings(args: argparse.Namespace) -> list[list[np.ndarray]]:
    """``--utterances`` recordings, float32 [samples] each, the longest first: of middling duration, or for each of ``--seconds``.

    Raises:
        InputError: no such corpus, an unreadable recording, or too little audio.
    """
    utterances = sorted(
        corpus_utterances(load_corpus(args.data_dir, args.subset)), key=lambda one: one.seconds, reverse=True
    )
    if args.seconds:
        joined = np.concatenate([utterance.read() for utterance in utterances])
        sizes = [round(seconds * SAMPLE_RATE_HZ) for seconds in args.seconds]
        found = [
            [*joined[: args.utterances * size].reshape(-1, size)]
            for size in sizes
            if args.utterances * size <= len(joined)
        ]
    else:
        start = max(0, len(utterances) - args.utterances) // 2
        found = [[utterance.read() for utterance in utterances[start : start + args.utterances]]]
    if len(found) < len(args.seconds or [None]) or any(len(recordings) < args.utterances for recordings in found):
        raise InputError(f"{args.subset} has not audio enough; lower --utterances or --seconds.")
    return found


def make_recognisers(checkpoint_path: str, steps: Sequence[int]) -> dict[str, Recogniser]:
    """Greedy recognisers by name: without test-time training, and for each number of steps as dear and as cheap as they come."""
    checkpoint = load_hybrid_checkpoint(checkpoint_path)
    decoder = make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id, beam_size=1)
    settings = {PLAIN: None}
    for count in steps:
        name = f"{count} step{'s' * (count != 1)}"
        for what, constant_updates, frozen_layers in VARIANTS:
            variant = TTTSettings(
                "entropy",
                steps=count,
                constant_updates=constant_updates,
                frozen_layers=frozen_layers,
                max_entropy=1,  # every recording is to take its steps
            )
            settings[name + what] = variant
    return {name: Recogniser(checkpoint, decoder, setting) for name, setting in settings.items()}


def transcription_seconds(recogniser: Recogniser, recordings: Sequence[np.ndarray], batch_size: int) -> float:
    """CPU time of all recordings."""
    started = time.process_time()
    for start in range(0, len(recordings), batch_size):
        recogniser(recordings[start : start + batch_size])
    return time.process_time() - started


def measure(
    recognisers: dict[str, Recogniser], recordings: Sequence[np.ndarray], batch_sizes: Sequence[int], repetitions: int
) -> list[dict]:
    """For each batch size its padding and, by recogniser, median CPU seconds and their ratios to the plain pass and to the first batch size."""
    combinations = [(size, name) for size in batch_sizes for name in recognisers]
    seconds = {combination: [] for combination in combinations}
    for repetition in tqdm(range(repetitions + 1), desc="repetitions, the first to warm up"):
        for size, name in combinations:
            taken = transcription_seconds(recognisers[name], recordings, size)
            if repetition:
                seconds[size, name].append(taken)

    def ratio(combination: tuple[int, str], other: tuple[int, str]) -> float:
        """Of two combinations in the same repetition, the median."""
        return statistics.median(a / b for a, b in zip(seconds[combination], seconds[other], strict=True))

    return [
        {
            "batch_size": size,
            "audio_seconds": sum(map(len, recordings)) / SAMPLE_RATE_HZ,
            "padding": padding_share(recordings, size),
            "timings": {
                name: {
                    "seconds": statistics.median(seconds[size, name]),
                    "times_plain": ratio((size, name), (size, PLAIN)),
                    "speedup": ratio((batch_sizes[0], name), (size, name)),
                }
                for name in recognisers
            },
        }
        for size in batch_sizes
    ]


def padding_share(recordings: Sequence[np.ndarray], batch_size: int) -> float:
    """Of all samples that the model is given."""
    lengths = [len(samples) for samples in recordings]
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


def table(results: Sequence[dict], utterances: int) -> str:
    """Markdown: CPU milliseconds for each recording, and the ratios."""
    header = ["mean duration", "batch size", "padding"]
    for name in results[0]["timings"]:
        header += [f"{name}: ms", "× plain", f"× batch of {results[0]['batch_size']}"]
    rows = [header]
    for result in results:
        row = [f"{result['audio_seconds'] / utterances:.1f} s", str(result["batch_size"]), f"{result['padding']:.1%}"]
        for timing in result["timings"].values():
            milliseconds = 1000 * timing["seconds"] / utterances
            row += [f"{milliseconds:.1f}", f"{timing['times_plain']:.2f}", f"{timing['speedup']:.2f}"]
        rows.append(row)
    return markdown_table(rows)


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    parser.add_argument("--data_dir", type=Path, required=True, help="corpus in LibriSpeech's layout")
    parser.add_argument("--subset", required=True)
    parser.add_argument("--utterances", type=int, default=16, help="(default: 16)")
    parser.add_argument(
        "--seconds", type=float, nargs="+", help="join the recordings and cut them into pieces of each duration"
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16], help="(default: 1 4 16)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--repetitions", type=int, default=5, help="(default: 5)")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/adaptation"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    recognisers = make_recognisers(args.checkpoint, args.steps)
    results = []
    for recordings in read_recordings(args):
        results += measure(recognisers, recordings, args.batch_sizes, args.repetitions)
    facts = {
        **environment(torch.device("cpu")),
        "command": " ".join(["python -m benchmarks.adaptation", *(argv or sys.argv[1:])]),
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.output_dir / "adaptation.json", {**facts, "utterances": args.utterances, "results": results})
    print(table(results, args.utterances))
    return 0


if __name__ == "__main__":
    sys.exit(main())
