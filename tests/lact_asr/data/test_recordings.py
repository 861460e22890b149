"""Folders of noise and impulse responses: names, formats, what is left out, and what is not kept in memory."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.data.recordings import load_recordings
from lact_asr.data.reverberation import load_impulse_responses
from lact_asr.errors import InputError


def write_level(path: Path, level: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(8_000, level), SAMPLE_RATE_HZ)


def test_recordings_are_resampled_to_16_khz_and_channels_averaged(tmp_path):
    time_seconds = np.arange(48_000) / 48_000
    soundfile.write(tmp_path / "hum.wav", np.stack([np.sin(2 * np.pi * 440 * time_seconds)] * 2, axis=1) * 0.5, 48_000)
    soundfile.write(tmp_path / "hiss.flac", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    recordings = load_recordings(tmp_path, "noise")
    assert list(recordings) == ["hiss", "hum"]
    assert recordings["hum"].shape == (16_000,)
    assert np.abs(np.fft.rfft(recordings["hum"])).argmax() == 440


def test_recordings_of_one_name_in_several_folders_are_several(tmp_path):
    """As in DEMAND, where every folder holds a ch01.wav."""
    levels = {"kitchen/ch01": 0.25, "loud": 0.5, "metro/ch01": 0.75, "metro/ch01.wav": 0.125}
    for name, file in zip(levels, ("kitchen/ch01.wav", "loud.wav", "metro/ch01.flac", "metro/ch01.wav"), strict=True):
        write_level(tmp_path / file, levels[name])
    assert {name: samples[0] for name, samples in load_recordings(tmp_path, "noise").items()} == pytest.approx(
        levels, abs=1e-3
    )


@pytest.mark.parametrize("load", [lambda folder: load_recordings(folder, "noise"), load_impulse_responses])
def test_what_cannot_be_used_is_left_out_by_name_unless_all_is(tmp_path, capsys, load):
    for folder, sentence in ((tmp_path / "none", "none"), (tmp_path, "no audio files")):
        with pytest.raises(InputError, match=sentence):
            load(folder)
    write_level(tmp_path / "silent.wav", 0.0)
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"no recording of .* can be used as .*; the first: .*silent\.wav is silent"):
        load(tmp_path)
    write_level(tmp_path / "good.wav", 0.5)
    assert list(load(tmp_path)) == ["good"]
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(" is ")[1] for line in warnings] == [
        f"left out: {tmp_path}/{name}" for name in ("silent.wav", "text.wav")
    ]


def test_every_channel_of_an_impulse_response_is_one(tmp_path, capsys):
    rng = np.random.default_rng(0)
    array = 0.1 * rng.standard_normal((2_000, 3))
    array[:, 1] = 0.0
    soundfile.write(tmp_path / "b.wav", array, 16_000, subtype="FLOAT")
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a/x.flac", 0.1 * rng.standard_normal(4_410), 44_100)
    responses = load_impulse_responses(tmp_path)
    assert list(responses) == ["a/x", "b#0", "b#2"]
    assert len(responses["a/x"]) == 1_600
    np.testing.assert_allclose(responses["b#0"], array[:, 0], atol=1e-7)
    np.testing.assert_allclose(responses["b#2"], array[:, 2], atol=1e-7)
    assert "channel 1 of" in capsys.readouterr().err


@pytest.mark.parametrize("each_channel", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_what_does_not_fit_into_memory_is_read_again(tmp_path, each_channel, kept):
    rng = np.random.default_rng(0)
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", rng.uniform(-0.1, 0.1, (900, 2)), 16_000)
    whole = {name: samples.copy() for name, samples in load_recordings(tmp_path, "noise", each_channel).items()}
    some = pickle.loads(pickle.dumps(load_recordings(tmp_path, "noise", each_channel, kept_bytes=kept * 900 * 4)))
    assert list(some) == list(whole)
    for name, samples in whole.items():
        np.testing.assert_array_equal(some[name], samples)
    for path in tmp_path.glob("*.wav"):
        path.unlink()

    def is_there(name: str) -> bool:
        try:
            return np.array_equal(some[name], whole[name])  # another is in the place of a lost one
        except InputError:
            return False

    assert list(map(is_there, some)) == [True] * kept + [False] * (len(some) - kept)


def test_a_recording_that_is_lost_later_is_replaced_by_the_next_one_with_one_warning(tmp_path, capsys):
    for name, level in (("a", 0.25), ("b", 0.5), ("c", 0.75)):
        write_level(tmp_path / f"{name}.wav", level)
    recordings = load_recordings(tmp_path, "noise", kept_bytes=0)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    (tmp_path / "c.wav").unlink()
    for _ in range(2):
        assert [recordings[name][0] for name in "abc"] == pytest.approx([0.25, 0.25, 0.25], abs=1e-3)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert "b.wav" in warnings[0]
    assert warnings[0].endswith("where it is drawn from now on, a is in its place.")
    (tmp_path / "a.wav").unlink()
    with pytest.raises(InputError, match=r"a\.wav"):
        _ = recordings["a"]
