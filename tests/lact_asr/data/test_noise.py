"""Noise: the ratio that was asked for, the colour's slope, independence of order and process, and the noisy copies."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from lact_asr.audio import SAMPLE_RATE_HZ, read_audio
from lact_asr.data.noise import COLOURS, NoiseMixer, coloured_noise, main, mix_at_snr
from lact_asr.errors import InputError


@pytest.fixture
def speech() -> np.ndarray:
    """One second of a tone that comes and goes, peak 0.3."""
    time_seconds = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    tone = np.sin(2 * np.pi * 220 * time_seconds) * np.sin(2 * np.pi * 3 * time_seconds)
    return (0.3 * tone).astype(np.float32)


def measured_snr_db(speech: np.ndarray, mixture: np.ndarray) -> float:
    """Ratio of the part of `mixture` along `speech` to the rest (exact for noise that is orthogonal to the speech)."""
    scale = float(np.dot(mixture, speech) / np.dot(speech, speech))
    rest = mixture - scale * speech
    return 10 * np.log10(np.sum((scale * speech) ** 2) / np.sum(rest**2))


@pytest.mark.parametrize("snr_db", [30.0, 20.0, 10.0, 0.0, -10.0])
@pytest.mark.parametrize("colour", sorted(COLOURS))
def test_mixture_has_the_ratio_asked_for_and_never_clips(speech, colour, snr_db):
    noise = coloured_noise(SAMPLE_RATE_HZ, colour, np.random.default_rng(3)).astype(np.float64)
    noise -= speech * (np.dot(noise, speech) / np.dot(speech, speech))
    mixture = mix_at_snr(speech, noise, snr_db)
    assert mixture.dtype == np.float32
    assert mixture.shape == speech.shape
    assert np.abs(mixture).max() <= 1.0
    assert measured_snr_db(speech, mixture.astype(np.float64)) == pytest.approx(snr_db, abs=0.1)


def test_loud_mixture_is_rescaled_to_full_scale(speech):
    mixture = mix_at_snr(speech, np.random.default_rng(0).standard_normal(speech.size), -20)
    assert np.abs(mixture).max() == pytest.approx(1.0)


def test_short_noise_is_repeated_and_long_noise_is_cut(speech):
    rng = np.random.default_rng(0)
    short = rng.standard_normal(700)
    repeated = np.tile(short, 30)[: speech.size]
    np.testing.assert_array_equal(mix_at_snr(speech, short, 15), mix_at_snr(speech, repeated, 15))
    longer = np.concatenate([repeated, rng.standard_normal(5000)])
    np.testing.assert_array_equal(mix_at_snr(speech, longer, 15), mix_at_snr(speech, repeated, 15))


def test_silent_speech_stays_silent_and_silent_noise_is_refused(speech):
    assert not mix_at_snr(np.zeros(1000), np.ones(1000), 10).any()
    with pytest.raises(InputError, match="silent"):
        mix_at_snr(speech, np.zeros(1000), 10)
    with pytest.raises(InputError, match="no samples"):
        mix_at_snr(speech, np.zeros(0), 10)


@pytest.mark.parametrize(("colour", "slope"), [("white", 0.0), ("pink", -1.0), ("brown", -2.0)])
def test_coloured_noise_has_its_spectral_slope(colour, slope):
    noise = coloured_noise(60 * SAMPLE_RATE_HZ, colour, np.random.default_rng(1))
    assert np.mean(noise.astype(np.float64) ** 2) == pytest.approx(1.0, abs=1e-4)
    # Power in octaves between 31 and 8,000 Hz; an octave's width doubles, so its power goes with f^(slope + 1).
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequencies_hz = np.fft.rfftfreq(noise.size, 1 / SAMPLE_RATE_HZ)
    edges_hz = 31.25 * 2.0 ** np.arange(9)
    octaves = [power[(frequencies_hz >= a) & (frequencies_hz < 2 * a)].sum() for a in edges_hz[:-1]]
    fitted = np.polyfit(np.log2(edges_hz[:-1]), np.log2(octaves), 1)[0]
    assert fitted - 1 == pytest.approx(slope, abs=0.05)


def test_coloured_noise_is_seeded_and_refuses_unknown_colours():
    first = coloured_noise(4000, "pink", np.random.default_rng(5))
    np.testing.assert_array_equal(first, coloured_noise(4000, "pink", np.random.default_rng(5)))
    assert not np.array_equal(first, coloured_noise(4000, "pink", np.random.default_rng(6)))
    with pytest.raises(InputError, match=r"'green'.*white"):
        coloured_noise(4000, "green", np.random.default_rng(5))
    with pytest.raises(InputError, match="1600"):
        coloured_noise(100, "pink", np.random.default_rng(5))


def two_noises() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {"hiss": rng.standard_normal(9000), "hum": np.sin(np.arange(7000) / 9)}


def test_mixer_depends_on_seed_and_name_only(speech):
    names = [f"utterance-{i}" for i in range(12)]
    mixer = NoiseMixer(two_noises(), (5, 15), seed=1)
    forwards = {name: mixer(speech, name) for name in names}
    backwards = {name: NoiseMixer(two_noises(), (5, 15), seed=1)(speech, name) for name in reversed(names)}
    for name in names:
        np.testing.assert_array_equal(forwards[name], backwards[name])
    assert len({mixture.tobytes() for mixture in forwards.values()}) == len(names)
    assert not np.array_equal(forwards[names[0]], NoiseMixer(two_noises(), (5, 15), seed=2)(speech, names[0]))


def test_mixer_is_the_same_in_another_process(speech):
    """Python's hash() of a string would differ there."""
    code = (
        "import numpy as np; from lact_asr.data.noise import NoiseMixer;"
        "mixer = NoiseMixer({'a': np.arange(1, 50.), 'b': np.ones(50)}, 10, seed=4);"
        "print(mixer(np.linspace(-0.2, 0.2, 2000), '84-121123-0001').tobytes().hex())"
    )
    mixer = NoiseMixer({"a": np.arange(1, 50.0), "b": np.ones(50)}, 10, seed=4)
    here = mixer(np.linspace(-0.2, 0.2, 2000), "84-121123-0001").tobytes().hex()
    for hash_seed in ("1", "2"):
        run = [sys.executable, "-c", code]
        there = subprocess.run(run, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True)
        assert there.stdout.strip() == here


def test_mixer_survives_a_silent_stretch_and_refuses_nonsense(speech):
    mostly_silent = np.zeros(100_000)
    mostly_silent[50_000] = 1.0
    mixer = NoiseMixer({"click": mostly_silent}, 10)
    assert all(not np.array_equal(mixer(speech, str(i)), speech) for i in range(10))
    for noises, snr_db in [({}, 10), (two_noises(), float("nan")), (two_noises(), (20, 10))]:
        with pytest.raises(InputError):
            NoiseMixer(noises, snr_db)
    with pytest.raises(InputError, match="silent"):
        NoiseMixer({"a": np.zeros(10)}, 10)(speech, "a")


def write_subset(folder, speech: np.ndarray) -> None:
    """Two utterances in LibriSpeech's layout, the second of the first's reverse."""
    chapter = folder / "7" / "70"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "7-70-0000.flac", speech, SAMPLE_RATE_HZ)
    soundfile.write(chapter / "7-70-0001.flac", speech[::-1], SAMPLE_RATE_HZ)
    (chapter / "7-70.trans.txt").write_text("7-70-0000 ONE\n7-70-0001 TWO\n")


def test_command_writes_noisy_subsets(tmp_path, speech):
    write_subset(tmp_path / "test-x", speech)
    arguments = [
        "--data_dir",
        str(tmp_path),
        "--subset",
        "test-x",
        "--output_dir",
        str(tmp_path),
        "--snr_db",
        "20",
        "2.5",
    ]
    assert main([*arguments, "--colour", "pink"]) == 0
    for name, snr_db in (("test-x-snr20", 20), ("test-x-snr2.5", 2.5)):
        chapter = tmp_path / name / "7" / "70"
        assert (chapter / "7-70.trans.txt").read_text() == "7-70-0000 ONE\n7-70-0001 TWO\n"
        clean = read_audio(tmp_path / "test-x" / "7" / "70" / "7-70-0001.flac").astype(np.float64)
        noisy = read_audio(chapter / "7-70-0001.flac").astype(np.float64)
        assert soundfile.info(chapter / "7-70-0001.flac").samplerate == SAMPLE_RATE_HZ
        noise = noisy - clean  # nothing was rescaled at these levels
        assert 10 * np.log10(np.sum(clean**2) / np.sum(noise**2)) == pytest.approx(snr_db, abs=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test-x", "test-x-snr2.5", "test-x-snr20"]


def test_command_reports_a_bad_file_and_goes_on(tmp_path, speech, capsys):
    write_subset(tmp_path / "test-x", speech)
    (tmp_path / "test-x" / "7" / "70" / "7-70-0000.flac").write_bytes(b"")
    arguments = ["--data_dir", str(tmp_path), "--subset", "test-x", "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--snr_db", "10", "--colour", "brown"]) == 0
    assert "7-70-0000.flac" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*.flac")] == ["7-70-0001.flac"]


def test_command_refusals_leave_nothing_behind(tmp_path, speech, capsys):
    write_subset(tmp_path / "test-x", speech)
    base = ["--data_dir", str(tmp_path), "--snr_db", "10"]
    out = ["--output_dir", str(tmp_path / "out")]
    assert main([*base, *out, "--subset", "no-such", "--colour", "pink"]) == 2
    assert main([*base, *out, "--subset", "test-x", "--noise_dir", str(tmp_path / "none")]) == 2
    for path in (tmp_path / "test-x").rglob("*.flac"):
        path.write_text("not audio")
    assert main([*base, *out, "--subset", "test-x", "--colour", "pink"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(word in error for word, error in zip(("no-such", "none", "7-70-0000"), errors, strict=True))
    assert not list((tmp_path / "out").glob("*"))
    (tmp_path / "out" / "test-x-snr10").mkdir(parents=True)
    assert main([*base, *out, "--subset", "test-x", "--colour", "pink"]) == 2
    assert "exists already" in capsys.readouterr().err
