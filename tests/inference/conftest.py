"""A small random model that "speaks", its checkpoint, recordings, and one seed for every test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import save_checkpoint
from lact_asr.inference.hybrid_asr_inference import main
from lact_asr.inference.language_models.ngram_training import build_ngram
from lact_asr.text import build_vocabulary

SENTENCES = ["THE CAT SAT ON THE MAT", "A DOG SAW THE CAT", "THE OLD DOG SAT", "A CAT SAW A DOG ON THE OLD MAT"] * 2


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def recording(seconds: float = 0.7, seed: int = 0, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Float32 [samples]: a gliding tone and noise that comes and goes, so that frames differ."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    generator = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * (200 + 900 * time + 40 * seed) * time)
    noise = generator.normal(size=len(time)) * (1 + np.sin(2 * np.pi * 7 * time))
    return (0.2 * tone + 0.1 * noise).astype(np.float32)


def write_recording(path: Path, seconds: float = 0.7, seed: int = 0, rate_hz: int = SAMPLE_RATE_HZ) -> Path:
    """Write `recording` in the container that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, recording(seconds, seed, rate_hz), rate_hz)
    return path


@pytest.fixture(scope="session")
def audio() -> SimpleNamespace:
    """`audio.make(seconds, seed)` and `audio.write(path, seconds, seed)`."""
    return SimpleNamespace(make=recording, write=write_recording)


@pytest.fixture(scope="session")
def saved_checkpoint(speaking_model, tmp_path_factory) -> Path:
    """``best_model.pt`` in a folder of its own, without a language model; not to be changed."""
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pt"
    save_checkpoint(path, speaking_model(), build_vocabulary())
    return path


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A trigram model of a few sentences; not to be changed."""
    return build_ngram(SENTENCES, tmp_path_factory.mktemp("lm") / "lm.arpa", order=3)


@pytest.fixture(scope="session")
def make_librispeech() -> Callable[[Path], Path]:
    """Write two chapters of two utterances in LibriSpeech's layout, subset ``test-tiny``, into a folder, which is returned."""

    def make(corpus: Path) -> Path:
        for chapter in (1, 2):
            folder = corpus / "test-tiny" / "7" / str(chapter)
            ids = [f"7-{chapter}-000{number}" for number in range(2)]
            for number, name in enumerate(ids):
                write_recording(folder / f"{name}.flac", 0.6, seed=10 * chapter + number)
            text = "".join(f"{name} {sentence}\n" for name, sentence in zip(ids, SENTENCES, strict=False))
            (folder / f"7-{chapter}.trans.txt").write_text(text)
        return corpus

    return make


@pytest.fixture
def librispeech(make_librispeech, tmp_path) -> Path:
    """A corpus of `make_librispeech` that the test may change."""
    return make_librispeech(tmp_path / "corpus")


@pytest.fixture
def transcribe(capsys) -> Iterator[Callable[..., SimpleNamespace]]:
    """Run the inference command in this process: ``transcribe(*flags)`` gives exit code, stdout and stderr."""

    def run(*flags: object) -> SimpleNamespace:
        capsys.readouterr()
        code = main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    yield run
    sys.stdout.flush()
