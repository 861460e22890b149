"""Generate a speech corpus from nothing: eSpeak NG's English voices read grammar-made sentences.

    python -m lact_asr.data.generated_speech --output_dir DIR [--hours 1.4] [--seed 0] [--sentences FILE]

DIR then has LibriSpeech's layout, ready for ``--data_dir DIR --train_subset train-generated``:

    DIR/train-generated/3001/30010/3001-30010-0000.flac       16 kHz mono, 16 bit
    DIR/train-generated/3001/30010/3001-30010.trans.txt       "3001-30010-0000 THE TRANSCRIPT"
    DIR/dev-generated/…, DIR/test-generated/…                 other speakers, other sentences; 1/14 of the hours each
    DIR/SPEAKERS.TXT                                          the voice of each speaker
    DIR/corpus.json                                           what the corpus was made from; by it a finished one is reused

The same parameters give the same bytes, whatever the number of processes. `generated_plan` decides what is said and by
whom, `espeak` speaks, and this module writes: into a temporary folder beside DIR, renamed when complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import zlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.command_line import program_name
from lact_asr.data.atomic_folder import replacing_folder
from lact_asr.data.espeak import EspeakSynthesiser
from lact_asr.data.generated_plan import SUBSETS, CorpusPlan, Utterance, is_speakable, plan_corpus
from lact_asr.data.sentences import Sentence, read_sentences
from lact_asr.errors import InputError, exit_on_input_error

CORPUS_FILE = "corpus.json"
SPEAKERS_FILE = "SPEAKERS.TXT"
GENERATOR_VERSION = 1  # raise it with every change here that alters the audio
MIN_HOURS, MAX_HOURS = 0.002, 500.0
_SILENT_BELOW = 0.003  # of the peak: what eSpeak leaves before and after the speech
_TASKS_PER_BATCH = 8


@dataclass(frozen=True)
class SubsetSummary:
    """What one subset holds."""

    utterances: int
    speakers: int
    words: int
    hours: float


@dataclass(frozen=True)
class CorpusSummary:
    """What a corpus holds; `reused` says that it was there already."""

    output_dir: Path
    subsets: dict[str, SubsetSummary]
    reused: bool

    @property
    def hours(self) -> float:
        return sum(subset.hours for subset in self.subsets.values())


# ---- one utterance ----------------------------------------------------------------------------------------------------


def speak_utterance(utterance: Utterance) -> np.ndarray:
    """The samples of one planned utterance, which depend on nothing but the plan.

    Args:
        utterance: What, who and how loud.

    Returns:
        float32 [samples] at 16 kHz, within (-1, 1): silence, speech, silence over faint white noise.

    Raises:
        InputError: eSpeak lacks the voice, or says nothing for the text.
    """
    with EspeakSynthesiser() as synthesiser:
        native = synthesiser.speak(utterance.sentence.spoken, utterance.voice)
        rate_hz = synthesiser.sample_rate_hz
    speech = soxr.resample(native.astype(np.float32) / 32768, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    peak = float(np.abs(speech).max(initial=0.0))
    if peak == 0.0:
        raise InputError(f"eSpeak NG says nothing for the sentence {utterance.sentence.text!r}; leave it out")
    audible = np.flatnonzero(np.abs(speech) > _SILENT_BELOW * peak)
    speech = speech[audible[0] : audible[-1] + 1] * (10 ** (utterance.peak_dbfs / 20) / peak)

    before, after = (round(seconds * SAMPLE_RATE_HZ) for seconds in utterance.silence_seconds)
    samples = np.pad(speech, (before, after))
    # Digital silence occurs in no recording, and normalisation of single frames would have nothing to work on.
    rng = np.random.default_rng(zlib.crc32(utterance.utterance_id.encode()))
    floor = rng.standard_normal(samples.size) * 10 ** (utterance.floor_dbfs / 20)
    return (samples + floor).astype(np.float32)


def _write_utterance(task: tuple[str, Utterance]) -> int:
    """Speak one utterance into its file below a folder; returns its samples. Runs in the worker processes."""
    root, utterance = task
    samples = speak_utterance(utterance)
    pcm = np.round(samples * 32767).astype(np.int16)
    path = Path(root, utterance.folder, f"{utterance.utterance_id}.flac")
    soundfile.write(path, pcm, SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")
    return samples.size


# ---- the whole corpus -------------------------------------------------------------------------------------------------


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_all_audio(root: Path, utterances: Sequence[Utterance], num_workers: int) -> list[int]:
    """Write every file; returns the samples of each utterance, in order."""
    for folder in {utterance.folder for utterance in utterances}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    tasks = [(str(root), utterance) for utterance in utterances]
    progress = {"total": len(tasks), "desc": "generating speech", "unit": "utt", "disable": len(tasks) < 50}
    if num_workers == 1:
        return [_write_utterance(task) for task in tqdm(tasks, **progress)]
    # Forking starts at once and asks nothing of the caller's script, but is safe on Linux only.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # Not multiprocessing.Pool: ending one while a worker's error is under way can wait forever.
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        return list(tqdm(pool.map(_write_utterance, tasks, chunksize=_TASKS_PER_BATCH), **progress))


def _write_transcripts(root: Path, utterances: Sequence[Utterance]) -> None:
    chapters: dict[Path, list[str]] = defaultdict(list)
    for utterance in utterances:
        name = f"{utterance.speaker_id}-{utterance.chapter_id}.trans.txt"
        chapters[root / utterance.folder / name].append(f"{utterance.utterance_id} {utterance.sentence.text}\n")
    for path, lines in chapters.items():
        path.write_text("".join(lines), encoding="utf-8")


def _write_speakers(root: Path, plan: CorpusPlan, num_samples: Sequence[int]) -> None:
    minutes: dict[int, float] = defaultdict(float)
    for utterance, count in zip(plan.utterances, num_samples, strict=True):
        minutes[utterance.speaker_id] += count / SAMPLE_RATE_HZ / 60
    lines = ["; ID  | SEX | SUBSET | MINUTES | VOICE (eSpeak NG accent+variant, words per minute, pitch, pitch range)"]
    for subset in SUBSETS:
        for speaker in plan.speakers[subset]:
            voice = speaker.voice
            lines.append(
                f"{speaker.speaker_id} | {speaker.sex} | {subset} | {minutes[speaker.speaker_id]:.2f} | "
                f"{voice.espeak_name} {voice.speed_wpm} {voice.pitch} {voice.pitch_range}"
            )
    (root / SPEAKERS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summarise(plan: CorpusPlan, num_samples: Sequence[int]) -> dict[str, SubsetSummary]:
    summaries = {}
    for subset in SUBSETS:
        own = [(u, n) for u, n in zip(plan.utterances, num_samples, strict=True) if u.subset == subset]
        summaries[subset] = SubsetSummary(
            utterances=len(own),
            speakers=len(plan.speakers[subset]),
            words=sum(len(utterance.sentence.text.split()) for utterance, _ in own),
            hours=round(sum(count for _, count in own) / SAMPLE_RATE_HZ / 3600, 5),
        )
    return summaries


def _corpus_parameters(hours: float, seed: int, plan: CorpusPlan) -> dict:
    """All that decides a corpus's content; two corpora are the same if these are."""
    with EspeakSynthesiser() as synthesiser:
        espeak_version = synthesiser.version()
    return {
        "generator_version": GENERATOR_VERSION,
        "hours": hours,
        "seed": seed,
        "espeak_ng": espeak_version,
        "plan_sha256": hashlib.sha256(repr(plan).encode()).hexdigest(),  # of every sentence, voice and level
    }


# ---- folders: reuse, replace, refuse ----------------------------------------------------------------------------------


def _existing_corpus(output_dir: Path) -> dict | None:
    """The corpus.json of a folder; None if there is no folder or it is empty.

    Raises:
        InputError: The path holds something that is not a generated corpus, which nothing may overwrite.
    """
    if not output_dir.exists():
        return None
    if not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file; --output_dir must name a folder")
    if not any(output_dir.iterdir()):
        return None
    try:
        record = json.loads((output_dir / CORPUS_FILE).read_text(encoding="utf-8"))
        record["parameters"], record["subsets"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{output_dir} holds something else than a generated corpus; choose a new folder") from error
    return record


def _is_complete(output_dir: Path, record: dict) -> bool:
    return all(
        sum(1 for _ in (output_dir / subset).rglob("*.flac")) == summary["utterances"]
        for subset, summary in record["subsets"].items()
    )


def _refuse_different(output_dir: Path, existing: dict, parameters: dict) -> None:
    before = existing["parameters"]
    for key, value in parameters.items():
        if before.get(key) != value:
            what = (
                "other sentences or voices" if key == "plan_sha256" else f"{key} {before.get(key)} instead of {value}"
            )
            raise InputError(
                f"{output_dir} holds a generated corpus with {what}; choose another folder, or replace it with --force"
            )
    if not _is_complete(output_dir, existing):
        raise InputError(f"{output_dir} holds a generated corpus with missing files; make it again with --force")


def _check_arguments(hours: float, num_workers: int, train_sentences: Sequence[Sentence] | None) -> None:
    if not MIN_HOURS <= hours <= MAX_HOURS:
        raise InputError(f"hours must lie between {MIN_HOURS} and {MAX_HOURS}, not {hours}")
    if num_workers < 1:
        raise InputError(f"num_workers must be at least 1, not {num_workers}")
    if train_sentences is not None and not any(is_speakable(sentence) for sentence in train_sentences):
        raise InputError("none of the given sentences is short enough to be spoken in 15 seconds")


def generate_corpus(
    output_dir: str | os.PathLike,
    hours: float = 1.4,
    seed: int = 0,
    num_workers: int | None = None,
    train_sentences: Sequence[Sentence] | None = None,
    force: bool = False,
) -> CorpusSummary:
    """Write a corpus, or find that it is there already.

    Args:
        output_dir: The folder to make.
        hours: Of speech, all subsets together, by estimate (a few percent off).
        seed: Decides speakers, sentences and levels.
        num_workers: Processes; None for one a core. Changes nothing but the time.
        train_sentences: What the training subset speaks instead of grammar-made sentences (see `plan_corpus`); those too
            long for 15 seconds are left out.
        force: Replace a generated corpus with other parameters. Other folders are never overwritten.

    Returns:
        The summary; `reused` if a complete corpus with the same parameters was there.

    Raises:
        InputError: Bad argument; folder not writable or with other content; espeakng-loader missing.
    """
    output_dir = Path(os.path.abspath(output_dir))
    num_workers = _available_cores() if num_workers is None else num_workers
    _check_arguments(hours, num_workers, train_sentences)
    existing = _existing_corpus(output_dir)
    plan = plan_corpus(hours, seed, train_sentences)
    parameters = _corpus_parameters(hours, seed, plan)
    if existing is not None and not force:
        _refuse_different(output_dir, existing, parameters)
        return CorpusSummary(output_dir, {s: SubsetSummary(**v) for s, v in existing["subsets"].items()}, reused=True)

    with replacing_folder(output_dir) as new:
        num_samples = _write_all_audio(new, plan.utterances, num_workers)
        _write_transcripts(new, plan.utterances)
        _write_speakers(new, plan, num_samples)
        subsets = _summarise(plan, num_samples)
        record = {"parameters": parameters, "subsets": {subset: asdict(summary) for subset, summary in subsets.items()}}
        (new / CORPUS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return CorpusSummary(output_dir, subsets, reused=False)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.data.generated_speech"),
        description="Generate a speech corpus in LibriSpeech's layout with eSpeak NG's voices.",
    )
    parser.add_argument(
        "--output_dir", required=True, help="folder to make; a finished one with the same options is reused"
    )
    parser.add_argument("--hours", type=float, default=1.4, help="of all subsets together (default 1.4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, help="processes (default: one a core)")
    parser.add_argument(
        "--sentences", help='text file (a sentence a line) or .jsonl manifest ("text") that the training subset speaks'
    )
    parser.add_argument("--force", action="store_true", help="replace a generated corpus that has other options")
    return parser.parse_args(arguments)


@exit_on_input_error
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse_arguments(arguments)
    summary = generate_corpus(
        options.output_dir,
        hours=options.hours,
        seed=options.seed,
        num_workers=options.num_workers,
        train_sentences=read_sentences(options.sentences) if options.sentences else None,
        force=options.force,
    )
    print(f"{summary.output_dir}: {summary.hours:.2f} h{' (was there already)' if summary.reused else ''}")
    for name, subset in summary.subsets.items():
        print(
            f"  {name:16s} {subset.hours:6.3f} h {subset.utterances:6d} utterances {subset.speakers:4d} speakers "
            f"{subset.words:7d} words"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
