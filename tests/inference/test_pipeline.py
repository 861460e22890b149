"""Transformers' own pipeline on a saved model: raw audio, batches, word times, chunks, beam search with a language model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import lact_asr.auto  # noqa: F401 - registers the model
from lact_asr.atomic_files import write_json
from lact_asr.checkpoint import load_checkpoint
from lact_asr.errors import InputError
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.exporting.pipeline_decoder import load_pipeline_decoder
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.recogniser import Recogniser


@pytest.fixture(scope="module")
def folder(saved_checkpoint, language_model, tmp_path_factory) -> Path:
    """What ``save_pretrained`` writes, with a language model beside it."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoint = load_checkpoint(saved_checkpoint)
    checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    shutil.copy(language_model, folder / "lm.arpa")
    return folder


def recognise(folder: Path, **options):
    from transformers import pipeline

    return pipeline("automatic-speech-recognition", model=str(folder), **options)


def recogniser(folder: Path, **search: float) -> Recogniser:
    """This package's own: greedy, or a beam search with the language model in the folder."""
    checkpoint = load_checkpoint(folder)
    options = {**search, "language_model": load_language_model(folder / "lm.arpa")} if search else {}
    decoder = make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id, **options)
    return Recogniser(checkpoint, decoder)


def test_texts_and_word_times_are_this_packages(folder, audio):
    samples = audio.make(1.0, 3)
    (own,) = recogniser(folder)([samples])
    theirs = recognise(folder)({"raw": samples, "sampling_rate": 16_000}, return_timestamps="word")
    assert theirs["text"].split() == own.text.split()
    times = [(chunk["text"], *chunk["timestamp"]) for chunk in theirs["chunks"]]
    offset = 40 / 16_000  # half of what a frame sees beside its own 320 samples: the pipeline knows only frames
    expected = [(word.text, word.start_seconds - offset, word.end_seconds - offset) for word in own.words]
    assert [text for text, *_ in times] == [text for text, *_ in expected]
    np.testing.assert_allclose([row[1:] for row in times], [row[1:] for row in expected], atol=1e-9)


def test_batches_change_nothing(folder, audio):
    """Nothing is read into the padding of a batch's shorter recordings."""
    recordings = [audio.make(seconds, number) for number, seconds in enumerate((0.5, 0.9, 0.4))]
    transcribe = recognise(folder)
    assert transcribe(list(recordings), batch_size=3) == [transcribe(samples) for samples in recordings]


def test_chunks(folder, audio):
    samples = audio.make(2.4, 5)
    transcribe = recognise(folder)
    whole = transcribe(samples)["text"]
    assert transcribe(samples, chunk_length_s=3.0)["text"] == whole
    chunked = transcribe(samples, chunk_length_s=1.0, stride_length_s=0.2, return_timestamps="word")
    assert len(chunked["text"].split()) > 5
    starts = [chunk["timestamp"][0] for chunk in chunked["chunks"]]
    assert starts == sorted(starts)
    assert 2.0 < chunked["chunks"][-1]["timestamp"][1] <= 2.4


def test_beam_search_with_the_language_model_and_the_weights_beside_the_model(folder, audio, tmp_path):
    samples = audio.make(1.0, 2)
    search = {"beam_size": 5, "unknown_word_score": -1.0}  # what the random model says is no word
    weights = {"lm_weight": 0.1, "word_score": 8.0}
    tuned = shutil.copytree(folder, tmp_path / "tuned")
    write_json(tuned / "lm_weights.json", {"best": weights})
    (own,) = recogniser(folder, **search, **weights)([samples])
    theirs = recognise(tuned, decoder=load_pipeline_decoder(str(tuned), **search))(samples, return_timestamps="word")
    assert theirs["text"] == own.text
    assert [chunk["text"] for chunk in theirs["chunks"]] == own.text.split()
    (own_untuned,) = recogniser(folder, **search)([samples])
    untuned = recognise(folder, decoder=load_pipeline_decoder(str(folder), **search))(samples)
    assert untuned["text"] == own_untuned.text != own.text


def test_impossible_options_are_said(folder):
    with pytest.raises(InputError, match="beam_size"):
        load_pipeline_decoder(str(folder), beam_size=0)
