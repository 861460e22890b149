"""Alignment of known transcripts: against every path there is, against the greedy transcript's own times, and as a command."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from lact_asr.checkpoint import load_checkpoint
from lact_asr.errors import InputError
from lact_asr.inference.align import main
from lact_asr.inference.alignment.ctc_paths import collapse_path
from lact_asr.inference.alignment.forced_alignment import align_recording, align_text
from lact_asr.inference.decoding import CTCAlphabet, TimedWord, make_decoder
from lact_asr.inference.recogniser import Recogniser

ALPHABET = CTCAlphabet({"<pad>": 0, "<s>": 1, "|": 2, "A": 3, "B": 4}, 0)
SYMBOLS = {0: "", 2: " ", 3: "A", 4: "B"}


def spans(words: tuple[TimedWord, ...]) -> list[tuple[str, int, int]]:
    return [(word.text, word.start_frame, word.end_frame) for word in words]


def spelling(path: tuple[int, ...]) -> str:
    return "".join(SYMBOLS[label] for label, _ in itertools.groupby(path))


def best_by_hand(log_probs: torch.Tensor, text: str) -> tuple[int, ...]:
    """Of all paths that spell the text, written out, the likeliest."""
    paths = (path for path in itertools.product(SYMBOLS, repeat=len(log_probs)) if spelling(path) == text)
    return max(paths, key=lambda path: sum(log_probs[frame, label].item() for frame, label in enumerate(path)))


@pytest.mark.parametrize("text", ["A", "AA", "AB A", "A B", "BAB", "ABBA"])
@pytest.mark.parametrize("seed", [0, 1])
def test_words_and_characters_of_the_likeliest_path(text, seed):
    """Repeated characters included, between which a blank must be heard."""
    log_probs = (2 * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    words, characters = align_text(log_probs, text, ALPHABET)
    path = best_by_hand(log_probs, text)
    runs, frame = [], 0
    for label, group in itertools.groupby(path):
        length = len(list(group))
        runs.append((SYMBOLS[label], frame, frame + length))
        frame += length
    by_hand = [run for run in runs if run[0] not in ("", " ")]
    assert spans(characters) == by_hand
    starts = {start: word for word, (start, _) in zip(text.split(), _word_bounds(text, by_hand), strict=True)}
    assert spans(words) == [(starts[start], start, end) for start, end in _word_bounds(text, by_hand)]
    assert all(0 < word.confidence <= 1 for word in (*words, *characters))


def _word_bounds(text: str, characters: list[tuple[str, int, int]]) -> list[tuple[int, int]]:
    bounds, position = [], 0
    for word in text.split():
        bounds.append((characters[position][1], characters[position + len(word) - 1][2]))
        position += len(word)
    return bounds


@pytest.mark.parametrize(
    ("text", "frames", "reason"),
    [
        ("AA", 2, "2 frames are too few to spell 2 labels"),
        ("A B", 2, "2 frames are too few to spell 3 labels"),
        ("", 4, "no transcript to align"),
        ("A CAT", 9, "cannot spell C T"),
    ],
)
def test_what_cannot_be_aligned_is_said(text, frames, reason):
    with pytest.raises(InputError, match=reason):
        align_text(torch.zeros(frames, 5), text, ALPHABET)


def test_output_that_is_not_finite_is_said():
    with pytest.raises(InputError, match="NaN"):
        align_text(torch.full((4, 5), torch.nan), "A", ALPHABET)


@pytest.fixture(scope="module")
def recogniser(saved_checkpoint) -> Recogniser:
    checkpoint = load_checkpoint(saved_checkpoint)
    return Recogniser(checkpoint, make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id))


def test_what_was_recognised_is_aligned_where_it_was_recognised(recogniser, audio):
    """The greedy path is the likeliest of all, so also of those that spell its text."""
    alphabet, compared = recogniser.decoder.alphabet, 0
    for number in range(8):
        samples = audio.make(0.9, number)
        (recognised,) = recogniser([samples])
        greedy = torch.from_numpy(alphabet.prepare(recogniser.emission(samples), None).argmax(1))
        if collapse_path(greedy, 0).tolist() != alphabet.spell(recognised.text):
            continue  # word delimiters before the first word, behind the last, or doubled are not in the text
        aligned = align_recording("a", samples, recognised.text, recogniser, characters=True)
        assert aligned.words == recognised.words
        assert "".join(character.text for character in aligned.characters) == recognised.text.replace(" ", "")
        assert aligned.audio_seconds == 0.9
        compared += len(aligned.words)
    assert compared > 2


def test_the_command(saved_checkpoint, audio, tmp_path, capsys):
    path = audio.write(tmp_path / "a.wav", 1.2)
    (tmp_path / "a.txt").write_text("The cat,\nthe mat.\n")
    flags = ["--checkpoint", str(saved_checkpoint), "--audio_file", str(path)]
    assert main([*flags, "--text", "the cat the mat"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[4] for line in lines] == ["THE", "CAT", "THE", "MAT"]
    assert np.all(np.diff([float(line[2]) for line in lines]) > 0)
    output = tmp_path / "a.jsonl"
    assert main([*flags, "--text_file", str(tmp_path / "a.txt"), "--characters", "--output", str(output)]) == 0
    (line,) = map(json.loads, output.read_text().splitlines())
    assert line["text"] == "THE CAT THE MAT"
    assert "".join(character["text"] for character in line["characters"]) == "THECATTHEMAT"
    assert [round(word["start_seconds"], 3) for word in line["words"]] == [float(line[2]) for line in lines]


def test_the_command_on_a_corpus_goes_on_behind_what_cannot_be_aligned(saved_checkpoint, librispeech, tmp_path, capsys):
    short = librispeech / "test-tiny" / "7" / "1" / "7-1-0000.flac"
    transcripts = librispeech / "test-tiny" / "7" / "2" / "7-2.trans.txt"
    transcripts.write_text(transcripts.read_text().replace("THE CAT SAT ON THE MAT", "THE CAT SAT ON THE MAT " * 9))
    flags = ["--checkpoint", str(saved_checkpoint), "--data_dir", str(librispeech), "--subset", "test-tiny"]
    assert main([*flags, "--output_format", "textgrid", "--output", str(tmp_path / "grids")]) == 0
    assert short.is_file()
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == [
        "7-1-0000.TextGrid", "7-1-0001.TextGrid", "7-2-0001.TextGrid"
    ]  # fmt: skip
    assert "7-2-0000: the transcript cannot be aligned" in capsys.readouterr().err


def test_what_is_read_is_not_written_over(saved_checkpoint, audio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audio.write(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("THE CAT\n")
    (tmp_path / "dev.jsonl").write_text('{"audio_filepath": "a.wav", "text": "THE CAT"}\n')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    one = ["--audio_file", "a.wav", "--text_file", "a.txt"]
    corpus = ["--data_dir", ".", "--subset", "dev", "--dataset_type", "manifest"]
    for flags, reason in (
        ([*one, "--output", "a.wav", "--output_format", "ctm"], "--output a.wav is also read"),
        ([*one, "--output", "a.txt"], "--output a.txt is also read"),
        ([*corpus, "--output", "dev.jsonl"], "--output dev.jsonl is also read"),
        ([*one, "--output", "words.xyz"], "words.xyz has the suffix of no transcript format: take .txt, .jsonl"),
    ):
        assert main(["--checkpoint", str(saved_checkpoint), *flags]) == 2
        assert reason in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--text", "A"], "Give --audio_file or --data_dir"),
        (["--audio_file", "a.wav"], "needs --text or --text_file"),
        (["--data_dir", "x"], "--data_dir needs --subset"),
        (["--audio_file", "a.wav", "--text", "ROOM 5"], "holds 5, which can be said in several ways"),
        (["--audio_file", "a.wav", "--text_file", "missing.txt"], "missing.txt cannot be read"),
    ],
)
def test_flags_that_do_not_go_together(flags, reason, capsys):
    assert main(["--checkpoint", "none", *flags]) == 2
    assert reason in capsys.readouterr().err
