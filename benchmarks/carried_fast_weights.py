"""Does it help to remember a speaker? Fast weights carried from utterance to utterance, against fresh ones.

    python -m benchmarks.carried_fast_weights --checkpoint CHECKPOINT --data_dir DIR --subset test-generated --output_dir OUT \\
      --snr_db 20 10 --colour pink

Each speaker's utterances, in their order, are the pieces of one long recording, with one noise going through all of it, so that
every piece has its reference. Word errors, greedy; differences to fresh weights with 95 % intervals of the paired bootstrap over
speakers, because utterances that share a memory are not independent.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lact_asr.atomic_files import write_json
from lact_asr.checkpoint import load_hybrid_checkpoint
from lact_asr.data.corpora import load_corpus
from lact_asr.data.noise import COLOURS, NoiseMixer, load_noises
from lact_asr.errors import exit_on_input_error
from lact_asr.inference.decoding import GreedyDecoder
from lact_asr.inference.evaluation import Utterance
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.results.summary import markdown_table
from lact_asr.inference.robustness.bootstrap import interval, resampled_rates
from lact_asr.inference.utterances import corpus_utterances, spread_evenly
from lact_asr.metrics import count_character_errors, count_word_errors
from lact_asr.shared_flags import add_checkpoint, add_dataset_type

COUNTS = {"words": count_word_errors, "characters": count_character_errors}


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write it and the counts of every speaker."""
    options = _parse(argv)
    checkpoint = load_hybrid_checkpoint(options.checkpoint)
    corpus = load_corpus(options.data_dir, options.subset, options.dataset_type)
    speakers = by_speaker(corpus_utterances(corpus), options.max_speakers)
    decoder = GreedyDecoder(checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id)
    systems = {0.0: Recogniser(checkpoint, decoder)}
    systems |= {decay: Recogniser(checkpoint, decoder, carry_fast_weights=decay) for decay in options.decays}
    noises = load_noises(options.noise_dir, options.colour, options.seed)
    mixers = {f"{snr:g} dB": NoiseMixer(noises, snr, options.seed) for snr in options.snr_db}
    counts = {condition: [] for condition in ["clean", *mixers]}
    with tqdm(total=len(counts) * len(speakers), unit="recording") as bar:
        for speaker, utterances in speakers.items():
            pieces = [utterance.read() for utterance in utterances]
            references = [utterance.reference for utterance in utterances]
            for condition, of_speakers in counts.items():
                noisy = with_noise(pieces, mixers[condition], speaker) if condition in mixers else pieces
                of_speakers.append([errors(system, noisy, references) for system in systems.values()])
                bar.update()
    report = f"{options.count} errors\n\n{table(counts, options.count, list(systems))}"
    print(report)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "table.md").write_text(report + "\n", encoding="utf-8")
    write_json(
        options.output_dir / "counts.json",
        {"decays": list(systems), "speakers": list(speakers), "counts": counts, "flags": {k: str(v) for k, v in vars(options).items()}},
    )  # fmt: skip
    return 0


def by_speaker(utterances: list[Utterance], max_speakers: int | None) -> dict[str, list[Utterance]]:
    """The utterances of each speaker in their order; at most so many speakers, evenly spread."""
    speakers: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    return {name: speakers[name] for name in spread_evenly(sorted(speakers), max_speakers)}


def with_noise(pieces: list[np.ndarray], mixer: NoiseMixer, speaker: str) -> list[np.ndarray]:
    """One noise through all of a speaker's recording."""
    noisy = mixer(np.concatenate(pieces), speaker)
    return np.split(noisy, np.cumsum([len(piece) for piece in pieces])[:-1])


def errors(system: Recogniser, pieces: list[np.ndarray], references: list[str]) -> dict[str, tuple[int, int]]:
    """Of one recording, words and characters: (errors, how many there are in the references)."""
    with system.memory.over_a_recording() if system.memory else contextlib.nullcontext():
        texts = [answer.text for piece in pieces for answer in system([piece])]
    totals = {}
    for name, count in COUNTS.items():
        counted = [count(reference, text) for reference, text in zip(references, texts, strict=True)]
        totals[name] = (sum(one.errors for one in counted), sum(one.reference_length for one in counted))
    return totals


def table(counts: dict[str, list[list[dict]]], unit: str, decays: list[float]) -> str:
    """Markdown: a row for each decay and condition, with the difference to fresh fast weights."""
    rows = [["condition, decay", "error rate %", "difference to fresh", "95 % interval"]]
    for condition, of_speakers in counts.items():
        wrong = np.array([[one[unit][0] for one in systems] for systems in of_speakers], dtype=float)
        lengths = np.array([systems[0][unit][1] for systems in of_speakers], dtype=float)
        rates, resampled = wrong.sum(0) / lengths.sum(), resampled_rates(wrong, lengths)
        for column, decay in enumerate(decays):
            cells = ["fresh" if decay == 0 else f"carried, {decay:g}", f"{100 * rates[column]:.1f}"]
            low, high = interval(100 * (resampled[:, column] - resampled[:, 0]))
            difference = (
                [f"{100 * (rates[column] - rates[0]):+.1f}", f"{low:+.1f} to {high:+.1f}"] if decay else ["", ""]
            )
            rows.append([f"{condition}, {cells[0]}", cells[1], *difference])
    return markdown_table(rows)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.carried_fast_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    add_checkpoint(parser)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--subset", required=True)
    add_dataset_type(parser)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--decays", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0], help="default: %(default)s")
    parser.add_argument(
        "--snr_db", type=float, nargs="*", default=[], help="noise through each recording, beside clean"
    )
    parser.add_argument("--noise_dir", help="folder of noise recordings")
    parser.add_argument("--colour", choices=sorted(COLOURS), default="pink", help="without --noise_dir (default: pink)")
    parser.add_argument("--count", choices=sorted(COUNTS), default="words", help="what errors are counted in")
    parser.add_argument("--max_speakers", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
