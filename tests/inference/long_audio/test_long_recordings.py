"""Files of any length: their words, in bounded memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lact_asr.audio import SAMPLE_RATE_HZ as RATE
from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import Word
from lact_asr.inference.evaluation import Recognition
from lact_asr.inference.long_audio.long_recordings import Cutting, LongRecording, PiecewiseRecogniser, read_or_defer

TONES_HZ = 250.0 * np.arange(2, 22)
WORDS = [chr(ord("A") + index) for index in range(len(TONES_HZ))]


def spoken(words: str, gap_seconds: float = 0.08) -> np.ndarray:
    """Float32 [samples]: each letter is a word, a tone of 0.3 s with a short gap after it."""
    time = np.arange(round(0.3 * RATE)) / RATE
    gap = np.zeros(round(gap_seconds * RATE))
    tones = [np.append(0.3 * np.sin(2 * np.pi * TONES_HZ[WORDS.index(word)] * time), gap) for word in words]
    return np.concatenate(tones).astype(np.float32)


def hear_tones(recordings, speakers=None) -> list[Recognition]:
    """An exact recogniser of what `spoken` says: a word for each stretch of one tone, however short."""
    answers = []
    for samples in recordings:
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
        time = np.arange(160) / RATE
        power = np.abs(frames @ np.exp(2j * np.pi * np.outer(time, TONES_HZ)))
        heard = np.where(power.max(axis=1) > 8, power.argmax(axis=1), -1)
        edges = np.flatnonzero(np.diff(heard, prepend=-1, append=-1))
        words = tuple(
            Word(WORDS[heard[begin]], begin / 100, end / 100)
            for begin, end in itertools.pairwise(edges)
            if heard[begin] >= 0
        )
        answers.append(Recognition(" ".join(word.text for word in words), words=words))
    return answers


def sentence(seed: int, words: int) -> str:
    """Words of which no two neighbours are alike."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(1, len(WORDS), size=words)
    return "".join(WORDS[index] for index in np.cumsum(steps) % len(WORDS))


def write_conversation(path: Path, rate_hz: int = RATE) -> str:
    """Forty sentences with pauses between them, some too long for a piece; returns their words."""
    generator = np.random.default_rng(0)
    texts = [sentence(seed, int(generator.integers(3, 40))) for seed in range(40)]
    parts = [
        part for text in texts for part in (spoken(text), np.zeros(int(generator.uniform(0.3, 2) * RATE), np.float32))
    ]
    samples = np.concatenate(parts)
    if rate_hz == 2 * RATE:
        samples = np.repeat(samples, 2)
    soundfile.write(path, samples, rate_hz)
    return " ".join("".join(texts))


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("pause_seconds", [0.5, np.inf])
def test_words_are_neither_lost_nor_doubled_at_the_cuts(tmp_path, capsys, batch_size, pause_seconds):
    said = write_conversation(tmp_path / "long.flac")
    recording = read_or_defer(tmp_path / "long.flac", longest_seconds=8.0)
    assert isinstance(recording, LongRecording)
    (whole,) = hear_tones([np.concatenate(list(recording.blocks()))])
    assert whole.text == said
    recogniser = PiecewiseRecogniser(hear_tones, Cutting(8.0, pause_seconds), batch_size)
    short = spoken("ABC")
    answers = recogniser([short, recording, short])
    assert [answer.text for answer in answers] == ["A B C", said, "A B C"]
    for name in ("start_seconds", "end_seconds"):  # from the start of the recording
        times, expected = ([getattr(word, name) for word in answer.words] for answer in (answers[1], whole))
        np.testing.assert_allclose(times, expected, atol=0.011)
    message = capsys.readouterr().err  # fifteen seconds without a pause are cut between two words, and that is said
    assert "no silence within 8 s, so it was cut where it is quietest, at 0:0" in message


def test_pieces_that_ttt_left_alone_are_counted(tmp_path):
    write_conversation(tmp_path / "long.flac")
    recording = read_or_defer(tmp_path / "long.flac", longest_seconds=8.0)
    reasons = iter(["too short", None, "too short", "silent"])

    def adapt(recordings, speakers):
        return [Recognition("AFTER", "BEFORE", next(reasons, None)) for _ in recordings]

    pieces = sum(1 for _ in Cutting(8.0).pieces(recording))
    (answer,) = PiecewiseRecogniser(adapt, Cutting(8.0))([recording])
    assert answer.ttt_refusal == f"2 of {pieces} pieces: too short; 1 of {pieces} pieces: silent"
    assert (answer.text, answer.text_without_ttt) == (" ".join(["AFTER"] * pieces), " ".join(["BEFORE"] * pieces))


def test_short_recordings_are_read_at_once(tmp_path):
    soundfile.write(tmp_path / "a.wav", spoken("ABC"), RATE)
    assert isinstance(read_or_defer(tmp_path / "a.wav", 30.0), np.ndarray)
    with pytest.raises(InputError, match="no such audio file"):
        read_or_defer(tmp_path / "none.wav", 30.0)


def test_what_a_damaged_end_leaves_is_transcribed_and_said(tmp_path, capsys):
    said = write_conversation(tmp_path / "long.flac")
    content = (tmp_path / "long.flac").read_bytes()
    (tmp_path / "long.flac").write_bytes(content[: 2 * len(content) // 3])
    recording = LongRecording(tmp_path / "long.flac", 16_000 * 400)
    (answer,) = PiecewiseRecogniser(hear_tones, Cutting(8.0))([recording])
    assert len(answer.text) > 50
    assert said.startswith(answer.text)
    assert (
        "long.flac is truncated or damaged: decoding it fails before its end; what comes after 0:0"
        in capsys.readouterr().err
    )
    (tmp_path / "long.flac").write_bytes(content[:9000])
    (answer,) = PiecewiseRecogniser(hear_tones, Cutting(8.0))([recording])
    assert isinstance(answer, InputError)


def test_the_command_cuts_long_files_by_itself(transcribe, saved_checkpoint, audio, tmp_path):
    """Its words are those of the pieces as files of their own, with and without test-time training."""
    pieces = [audio.make(2.0, seed) for seed in range(3)]
    gap = np.zeros(RATE, np.float32)
    soundfile.write(
        tmp_path / "long.wav", np.concatenate([part for one in pieces for part in (one, gap)]), RATE, "FLOAT"
    )
    ends = [0, 2.5, 5.5, 9.0]
    samples = soundfile.read(tmp_path / "long.wav", dtype="float32")[0]
    cuts = [round(end * RATE / 512) * 512 for end in ends[:-1]] + [len(samples)]
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        soundfile.write(tmp_path / f"{number}.wav", samples[start:end], RATE, "FLOAT")
    flags = ["--checkpoint", saved_checkpoint, "--greedy", "--voice_activity", "energy", "--segment_seconds", 4]
    for ttt in ([], ["--use_ttt", "--ttt_loss_type", "entropy", "--ttt_max_entropy", 1, "--ttt_scope", "stream"]):
        whole = transcribe(*flags, *ttt, "--audio_file", tmp_path / "long.wav")
        parts = transcribe(*flags, *ttt, "--audio_file", *(tmp_path / f"{number}.wav" for number in range(3)))
        assert (whole.code, parts.code) == (0, 0)
        texts = [line.partition("\t")[2] for line in parts.out.splitlines()]
        texts = [texts[start :: 1 + bool(ttt)] for start in range(1 + bool(ttt))]
        assert [line.partition("\t")[2] for line in whole.out.splitlines()] == [" ".join(text) for text in texts]
        assert "min of audio" in whole.err


@pytest.mark.parametrize(("flag", "value", "sentence"), [
    ("--segment_seconds", 3, "--segment_seconds must be 4 or more"),
    ("--segment_seconds", "nan", "--segment_seconds must be 4 or more"),
    ("--pause_seconds", 0, "--pause_seconds must be 0.2 or more"),
])  # fmt: skip
def test_impossible_lengths_are_refused(transcribe, flag, value, sentence):
    result = transcribe("--checkpoint", "none.pt", "--audio_file", "none.wav", flag, value)
    assert result.code == 2
    assert sentence in result.err


def test_memory_does_not_grow_with_length(saved_checkpoint, audio, tmp_path):
    """Five minutes are 18 MiB of samples, and far more in the model."""
    for minutes in (1, 5):
        turns = [
            part for seed in range(3 * minutes) for part in (audio.make(18.0, seed), np.zeros(2 * RATE, np.float32))
        ]
        soundfile.write(tmp_path / f"{minutes}.wav", np.concatenate(turns), RATE)
    program = """
        import resource, sys
        from lact_asr.checkpoint import load_checkpoint
        from lact_asr.inference.decoding import make_decoder
        from lact_asr.inference.long_audio.long_recordings import Cutting, PiecewiseRecogniser, read_or_defer
        from lact_asr.inference.recogniser import Recogniser

        checkpoint = load_checkpoint(sys.argv[1])
        decoder = make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id)
        recogniser = PiecewiseRecogniser(Recogniser(checkpoint, decoder), Cutting())
        for path in sys.argv[2:]:
            (answer,) = recogniser([read_or_defer(path, 30.0)])
            print(len(answer.text), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    paths = [tmp_path / "1.wav", tmp_path / "5.wav"]
    command = [sys.executable, "-c", textwrap.dedent(program), saved_checkpoint, *paths]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (few, after_one_kib), (many, after_five_kib) = (map(int, line.split()) for line in output)
    assert many > 4 * few > 400
    assert after_five_kib - after_one_kib < 8 * 1024
