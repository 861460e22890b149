"""Reading audio: containers, rates, channels, parts, and every way in which a file can be bad."""

import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lact_asr.audio import (
    MIN_SAMPLES,
    audio_blocks,
    audio_duration_seconds,
    find_audio_files,
    read_audio,
    read_audio_header,
)
from lact_asr.errors import InputError

REAL_DATA = Path(os.environ.get("LACT_ASR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
OPUS, VORBIS = {"format": "OGG", "subtype": "OPUS"}, {"format": "OGG", "subtype": "VORBIS"}


def noise(num_samples: int = 16_000, seed: int = 0) -> np.ndarray:
    """White noise, float32 [num_samples]: codecs need many bytes for it, so a shortened file really lacks audio."""
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def tone(rate_hz: int, seconds: float = 0.5, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def shortened(path: Path, fraction: float) -> Path:
    """The file with only the first part of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64"])
def test_lossless_containers_are_exact(tmp_path, name):
    written = noise()
    soundfile.write(tmp_path / name, written, 16_000, subtype="PCM_24" if name == "a.flac" else "FLOAT")
    read = read_audio(tmp_path / name)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, written, atol=2**-23)


@pytest.mark.parametrize(("name", "options"), [("a.ogg", OPUS), ("a.opus", OPUS), ("b.ogg", VORBIS), ("a.mp3", {})])
def test_lossy_containers_keep_length_and_tone(tmp_path, name, options):
    soundfile.write(tmp_path / name, tone(16_000), 16_000, **options)
    read = read_audio(tmp_path / name)
    assert len(read) == 8_000
    assert np.argmax(np.abs(np.fft.rfft(read))) == 220


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_are_resampled_to_the_same_signal(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", tone(rate_hz), rate_hz, subtype="FLOAT")
    read = read_audio(tmp_path / "a.wav")
    assert abs(len(read) - 8_000) <= 1
    np.testing.assert_allclose(read[800:7200], tone(16_000)[800:7200], atol=1e-3)


def test_channels_are_averaged(tmp_path):
    left, right = noise(seed=1), noise(seed=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


def test_a_part_is_what_slicing_gives(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(), 16_000)
    whole = read_audio(tmp_path / "a.flac")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", 0.25, 0.5), whole[4_000:12_000])
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", start_seconds=0.25), whole[4_000:])


@pytest.mark.parametrize(("start", "duration"), [(0.0, 1.1), (2.0, None), (-0.5, 1.0), (0.5, 0.0)])
def test_a_part_outside_of_the_recording_is_refused(tmp_path, start, duration):
    soundfile.write(tmp_path / "a.wav", noise(), 16_000)
    with pytest.raises(InputError, match=r"a\.wav is 1\.000 s long: the part from"):
        read_audio(tmp_path / "a.wav", start, duration)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.aiff", {}),
        ("a.au", {}),
        ("a.w64", {}),
        ("a.rf64", {}),
        ("a.ogg", OPUS),
        ("b.ogg", VORBIS),
    ],
)
@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.02])
def test_truncated_files_are_refused(tmp_path, name, options, fraction):
    soundfile.write(tmp_path / name, noise(48_000), 16_000, **options)
    read_audio(tmp_path / name)
    with pytest.raises(InputError, match=r"truncated") as caught:
        read_audio(shortened(tmp_path / name, fraction))
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("fraction", [0.9, 0.5])
def test_truncated_mp3_is_refused(tmp_path, fraction):
    soundfile.write(tmp_path / "a.mp3", noise(48_000), 16_000)
    with pytest.raises(InputError, match=r"a\.mp3 is truncated: its header promises 48,000 samples"):
        read_audio(shortened(tmp_path / "a.mp3", fraction))


def test_a_wav_from_a_pipe_with_open_ended_size_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFF_FFFF)
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav")) == 16_000


def test_an_ogg_stream_that_ends_between_pages_is_read(tmp_path):
    soundfile.write(tmp_path / "a.ogg", noise(80_000), 16_000, **OPUS)
    content = (tmp_path / "a.ogg").read_bytes()
    (tmp_path / "a.ogg").write_bytes(content[: content.rfind(b"OggS")])
    assert 16_000 < len(read_audio(tmp_path / "a.ogg")) < 80_000


def write_bytes(content: bytes):
    return lambda path: path.write_bytes(content)


def write_samples(samples: np.ndarray):
    return lambda path: soundfile.write(path, samples, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "no such audio file"),
        (lambda path: path.mkdir(), "is a folder"),
        (write_bytes(b""), "is empty"),
        (write_bytes(b"this is text, not audio\n" * 50), "is not audio"),
        (write_bytes(b"RIFF"), "truncated or damaged"),
        (write_samples(np.zeros(0, np.float32)), "no samples"),
        (write_samples(np.full(16_000, np.nan, np.float32)), "16000 samples that are not finite"),
        (
            write_samples(np.where(np.arange(16_000) == 9, np.inf, 0).astype(np.float32)),
            "1 samples that are not finite",
        ),
        (write_samples(noise(MIN_SAMPLES - 1)), "too short: 399 samples"),
    ],
)
def test_unusable_files_give_one_sentence_with_the_path(tmp_path, make, sentence):
    path = tmp_path / "bad file.wav"
    make(path)
    with pytest.raises(InputError, match=sentence) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_headerless_raw_file_is_not_audio(tmp_path):
    (tmp_path / "a.raw").write_bytes(noise().tobytes())
    with pytest.raises(InputError, match=r"a\.raw is not audio"):
        read_audio(tmp_path / "a.raw")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_file_whose_name_is_not_utf8_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), 16_000)
    os.rename(tmp_path / "a.wav", os.fsencode(tmp_path) + b"/caf\xe9.wav")
    (path,) = find_audio_files(tmp_path)
    assert len(read_audio(path)) == 16_000
    os.truncate(path, 1_000)
    with pytest.raises(InputError, match=r"caf\\udce9\.wav is truncated") as caught:
        read_audio(path)
    str(caught.value).encode()


def test_min_samples_counts_after_resampling(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3 * MIN_SAMPLES - 30), 48_000)
    with pytest.raises(InputError, match="too short: 390 samples"):
        read_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", noise(3 * MIN_SAMPLES), 48_000)
    assert len(read_audio(tmp_path / "a.wav")) == MIN_SAMPLES


@pytest.mark.parametrize(
    ("name", "rate_hz"), [("a.wav", 16_000), ("a.flac", 44_100), ("a.ogg", 8_000), ("a.mp3", 44_100)]
)
@pytest.mark.parametrize("block_seconds", [0.1, 0.77, 10.0])
def test_blocks_joined_are_the_recording(tmp_path, name, rate_hz, block_seconds):
    time = np.arange(2 * rate_hz) / rate_hz
    left, right = 0.3 * np.sin(2 * np.pi * 440 * time**2), 0.1 * np.sin(2 * np.pi * 3000 * time)
    soundfile.write(tmp_path / name, np.stack([left, right], axis=1), rate_hz)
    blocks = list(audio_blocks(tmp_path / name, block_seconds))
    assert max(map(len, blocks)) <= (block_seconds + 0.1) * 16_000
    np.testing.assert_allclose(np.concatenate(blocks), read_audio(tmp_path / name), atol=2e-6)


def test_blocks_of_a_damaged_recording_end_in_a_sentence(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 64_000), 16_000)
    blocks = audio_blocks(shortened(tmp_path / "a.flac", 0.6), 0.5)
    assert len(next(blocks)) == 8_000
    with pytest.raises(InputError, match="truncated"):
        list(blocks)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 8_000, 11_025])
def test_blocks_of_a_recording_without_a_frame_are_refused_as_the_whole_is(tmp_path, rate_hz):
    path = tmp_path / "a.wav"
    for num_frames in (10, int(0.025 * rate_hz) - 1, int(0.025 * rate_hz) + 1):
        soundfile.write(path, np.zeros(num_frames), rate_hz)
        outcomes = []
        for read in (read_audio, lambda path: np.concatenate(list(audio_blocks(path)))):
            try:
                outcomes.append(len(read(path)))
            except InputError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
    assert outcomes[0] >= MIN_SAMPLES


def test_header_and_duration(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros((22_050, 2)), 44_100)
    header = read_audio_header(tmp_path / "a.flac")
    assert (header.num_frames, header.sample_rate_hz, header.num_channels) == (22_050, 44_100, 2)
    assert audio_duration_seconds(tmp_path / "a.flac") == 0.5


def test_find_audio_files_sorts_and_leaves_out_what_is_not_audio(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.WAV", "b/a.flac", "b/c.opus", "notes.txt", "._z.wav"):
        (tmp_path / name).write_bytes(b"x")
    assert find_audio_files(tmp_path) == [tmp_path / name for name in ("b/a.flac", "b/c.opus", "z.WAV")]


@pytest.mark.parametrize(
    ("name", "sentence"), [("none", "no such folder"), ("empty", "no audio files"), ("file", "not a folder")]
)
def test_find_audio_files_without_a_result(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=sentence):
        find_audio_files(tmp_path / name)


@pytest.mark.real_data
def test_real_opus_and_flac_have_the_lengths_their_headers_say():
    if not REAL_DATA.is_dir():
        pytest.skip(f"no recordings in {REAL_DATA} (set LACT_ASR_DATA)")
    for path in (
        REAL_DATA / "speechocean762/audio/dev/0003/000030012.opus",
        REAL_DATA / "librispeech_excerpt/LibriSpeech/dev-clean/2412/153948/2412-153948-0000.flac",
    ):
        samples = read_audio(path)
        assert len(samples) == round(16_000 * audio_duration_seconds(path))
        assert 0.01 < np.abs(samples).max() <= 1.0


def test_recordings_in_formats_that_cannot_be_read_are_named(tmp_path, capsys):
    for name in ("memo.m4a", "film.MP4"):
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(InputError, match=r"2 recordings in formats that cannot be read \(film.MP4, memo.m4a\).*ffmpeg"):
        find_audio_files(tmp_path)
    with pytest.raises(InputError, match=r"memo.m4a is in a format that cannot be read here: convert.*ffmpeg"):
        read_audio(tmp_path / "memo.m4a")
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 16_000)
    assert find_audio_files(tmp_path) == [tmp_path / "a.wav"]
    assert (
        "2 recordings in formats that cannot be read (film.MP4, memo.m4a), which are passed over"
        in capsys.readouterr().err
    )
