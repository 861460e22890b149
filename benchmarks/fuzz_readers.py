"""What the package does with a file that it did not write: each kind of file is read as far as commands read it.

A reader returns the sentences of refusal, none if the file was taken. Everything else that can happen is a finding: another exception than
`InputError`, a dead process, a sentence that is none, a result that breaks its contract.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.fuzz_cases import CHAPTER, GOOD_RECORDING, SPEAKER, Case, encoded
from lact_asr.audio import MIN_SAMPLES, TarMember, read_audio, read_audio_header
from lact_asr.checkpoint import load_checkpoint
from lact_asr.data.corpora import load_corpus
from lact_asr.errors import InputError
from lact_asr.inference.evaluation import Recognition, evaluate
from lact_asr.inference.results.results_file import ResultsWriter, read_results
from lact_asr.inference.results.summary import format_table, summarise
from lact_asr.inference.utterances import corpus_utterances

LONGEST_SENTENCE = 1_000
_SUBSET = "subset"


def prepare_folder(folder: Path) -> None:
    """Lay out what the cases' files refer to: a good recording here and there, and a pipe into which nobody writes."""
    chapter = folder / "corpus" / _SUBSET / SPEAKER / CHAPTER
    for recording in (
        folder / GOOD_RECORDING,
        folder / "recordings" / GOOD_RECORDING,
        chapter / f"{chapter_name()}-0000.flac",
    ):
        recording.parent.mkdir(parents=True, exist_ok=True)
        recording.write_bytes(encoded("FLAC", "PCM_16"))
    os.mkfifo(folder / "pipe")


def chapter_name() -> str:
    """SPEAKER-CHAPTER, with which the names of a chapter's files begin."""
    return f"{SPEAKER}-{CHAPTER}"


def read_case(case: Case, folder: Path) -> list[str]:
    """Write a case's file into a prepared folder and read it.

    Returns:
        The sentences with which it, or parts of it, were refused.

    Raises:
        AssertionError: a sentence is none, or what was read breaks its contract.
        Exception: whatever the package raises but `InputError`.
    """
    parent = folder / "corpus" / _SUBSET / SPEAKER / CHAPTER if case.kind == "transcripts" else folder
    path = parent / case.name
    path.write_bytes(case.content)
    try:
        sentences = _READERS[case.kind](path, folder)
    finally:
        path.unlink()
    for sentence in sentences:
        assert "\n" not in sentence, f"more than one line: {sentence!r}"
        assert 20 <= len(sentence) <= LONGEST_SENTENCE, f"{len(sentence)} characters: {sentence[:200]!r}"
        names = str(path) in sentence or case.kind in ("manifest", "transcripts")  # there it may be the utterance's
        assert names, f"names no file: {sentence!r}"
        sentence.encode()
    return sentences


def _read_recording(path: Path, folder: Path) -> list[str]:
    """Its header, all of it, a part of it, and as a member of a tar file, which has a new name each time as it is kept open."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tar") as tar:
        tar.write(path.read_bytes())
        tar.flush()
        member = TarMember(Path(tar.name), str(path), 0, path.stat().st_size)
        return _sentences(
            lambda: read_audio_header(path),
            lambda: _check_samples(read_audio(path)),
            lambda: _check_samples(read_audio(path, 0.1, 0.2)),
            lambda: _check_samples(read_audio(member)),
        )


def _sentences(*readers: Callable[[], object]) -> list[str]:
    sentences = []
    for read in readers:
        try:
            read()
        except InputError as error:
            sentences.append(str(error))
    return sentences


def _check_samples(samples: np.ndarray) -> None:
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert samples.size >= MIN_SAMPLES
    assert np.isfinite(samples).all(), "samples that are not finite"


def _read_corpus(data_dir: Path, subset: str, dataset_type: str, results: Path) -> list[str]:
    """Load a corpus, read every utterance, and write and print what a command would."""
    try:
        corpus = load_corpus(data_dir, subset, dataset_type)
    except InputError as error:
        return [str(error)]
    corpus.report().encode()
    with ResultsWriter(results) as writer:
        done = evaluate(corpus_utterances(corpus), _answer, writer)
    assert [result.id for result in read_results(results)] == [cut.id for cut in corpus.cuts]
    return [problem.sentence for problem in corpus.problems] + [result.message for result in done if result.failed]


def _answer(recordings: Sequence[np.ndarray], speakers: Sequence[str | None]) -> list[Recognition]:
    for samples in recordings:
        _check_samples(samples)
    return [Recognition("A CAT")] * len(recordings)


def _read_manifest(path: Path, folder: Path) -> list[str]:
    return _read_corpus(folder, path.stem, "manifest", folder / "results.jsonl")


def _read_transcripts(path: Path, folder: Path) -> list[str]:
    return _read_corpus(folder / "corpus", _SUBSET, "librispeech", folder / "results.jsonl")


def _read_results(path: Path, folder: Path) -> list[str]:
    """Sum them up as a report does, then go on with them as --resume does."""

    def resume() -> None:
        with ResultsWriter(path, {"beam_size": "1"}, resume=True) as writer:
            format_table({"resumed": summarise(writer.done.values())}).encode()

    try:
        return _sentences(lambda: format_table({"read": summarise(read_results(path))}).encode(), resume)
    finally:
        path.touch()  # one without results is removed


def _read_checkpoint(path: Path, folder: Path) -> list[str]:
    def load() -> None:
        loaded = load_checkpoint(path)
        inputs = loaded.processor(np.zeros(800, np.float32), sampling_rate=16_000, return_tensors="pt")
        assert loaded.model(**inputs).logits.shape[-1] == len(loaded.processor.vocabulary)
        loaded.processor.batch_decode([list(range(len(loaded.processor.vocabulary)))])

    return _sentences(load)


_READERS: dict[str, Callable[[Path, Path], list[str]]] = {
    "recording": _read_recording,
    "manifest": _read_manifest,
    "transcripts": _read_transcripts,
    "results": _read_results,
    "checkpoint": _read_checkpoint,
}
