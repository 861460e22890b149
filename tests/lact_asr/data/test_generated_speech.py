"""The generated corpus: layout, disjoint subsets, the same bytes from any number of processes, plausible speech, refusals."""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader", reason="generated speech needs espeakng-loader")

from lact_asr.data.espeak import EspeakSynthesiser, VoiceSettings
from lact_asr.data.generated_plan import ACCENTS, FEMALE_VARIANTS, MALE_VARIANTS, SUBSETS, is_speakable, plan_corpus
from lact_asr.data.generated_speech import CorpusSummary, generate_corpus, main, speak_utterance
from lact_asr.data.sentences import Sentence
from lact_asr.errors import InputError

HOURS = 0.03


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> CorpusSummary:
    return generate_corpus(tmp_path_factory.mktemp("generated") / "corpus", hours=HOURS, seed=3, num_workers=2)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def transcripts(folder: Path) -> dict[str, str]:
    lines = (line for path in sorted(folder.rglob("*.trans.txt")) for line in path.read_text().splitlines())
    return dict(line.split(" ", 1) for line in lines)


def test_layout_is_librispeechs(corpus):
    for subset in SUBSETS:
        audio = sorted((corpus.output_dir / subset).rglob("*.flac"))
        assert [path.stem for path in audio] == sorted(transcripts(corpus.output_dir / subset))
        assert len(audio) == corpus.subsets[subset].utterances > 0
        for path in audio:
            speaker, chapter, _number = path.stem.split("-")
            assert path.relative_to(corpus.output_dir) == Path(subset, speaker, chapter, path.name)
            assert (path.parent / f"{speaker}-{chapter}.trans.txt").is_file()
            info = soundfile.info(path)
            assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")


def test_hours_are_about_those_asked_for(corpus):
    measured = sum(soundfile.info(path).duration for path in corpus.output_dir.rglob("*.flac")) / 3600
    assert measured == pytest.approx(corpus.hours, rel=0.01)
    assert measured == pytest.approx(HOURS, rel=0.15)


def test_speech_is_audible_and_of_plausible_length(corpus):
    for path in corpus.output_dir.rglob("*.flac"):
        samples, rate_hz = soundfile.read(path)
        text = transcripts(path.parent)[path.stem]
        seconds = len(samples) / rate_hz
        assert 0.8 < seconds < 15
        letters_per_second = len(text.replace(" ", "")) / seconds
        assert 4 < letters_per_second < 22, text
        peak_db = 20 * np.log10(np.abs(samples).max())
        assert -12.5 < peak_db < -0.5
        assert np.abs(samples).max() < 1.0
        level_db = 10 * np.log10(np.mean(samples**2))
        assert -45 < level_db < -8
        # Quiet at both ends, with a floor that is not digital silence.
        edge_db = 10 * np.log10(np.mean(samples[:700] ** 2))
        assert -80 < edge_db < -55


def test_subsets_share_neither_voices_nor_sentences():
    plan = plan_corpus(3.0, seed=0)
    voices = [{(s.voice.language, s.voice.variant) for s in plan.speakers[subset]} for subset in SUBSETS]
    ids = [{s.speaker_id for s in plan.speakers[subset]} for subset in SUBSETS]
    texts = [[u.sentence.text for u in plan.utterances if u.subset == subset] for subset in SUBSETS]
    for several in (voices, ids, [set(t) for t in texts]):
        assert all(several)
        assert len(set.union(*several)) == sum(len(one) for one in several)
    for subset_texts in texts:
        assert len(set(subset_texts)) == len(subset_texts)
    assert len({u.utterance_id for u in plan.utterances}) == len(plan.utterances)
    accents, variants = zip(*voices[0], strict=True)
    assert set(accents) == set(ACCENTS)
    assert set(variants) == {*FEMALE_VARIANTS, *MALE_VARIANTS}


def test_most_evaluation_words_occur_in_training():
    plan = plan_corpus(1.4, seed=0)
    words = {s: [w for u in plan.utterances if u.subset == s for w in u.sentence.text.split()] for s in SUBSETS}
    known = set(words["train-generated"])
    assert len(known) > 600
    for subset in SUBSETS[1:]:
        unknown = sum(word not in known for word in words[subset]) / len(words[subset])
        assert 0.005 < unknown < 0.06


def test_same_bytes_from_any_number_of_processes(corpus, tmp_path):
    alone = generate_corpus(tmp_path / "alone", hours=HOURS, seed=3, num_workers=1)
    assert digests(alone.output_dir) == digests(corpus.output_dir)
    assert alone.subsets == corpus.subsets


def test_an_utterance_does_not_depend_on_what_was_spoken_before(corpus):
    utterances = plan_corpus(HOURS, seed=3).utterances[:14]
    forwards = [speak_utterance(utterance) for utterance in utterances]
    backwards = [speak_utterance(utterance) for utterance in reversed(utterances)]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)
    path = corpus.output_dir / utterances[5].folder / f"{utterances[5].utterance_id}.flac"
    np.testing.assert_array_equal(
        np.round(forwards[5] * 32767).astype(np.int16), soundfile.read(path, dtype="int16")[0]
    )


@pytest.mark.parametrize("variant", ["f2", "klatt4", "croak", "zac"])
def test_espeak_state_does_not_leak(variant):
    """With echo, flutter or Klatt noise in the voice, eSpeak by itself never says a text twice in the same way."""
    voice = VoiceSettings("en-us", variant, 160, 50, 50)

    def say(text: str, other: VoiceSettings = voice) -> np.ndarray:
        with EspeakSynthesiser() as synthesiser:
            return synthesiser.speak(text, other)

    first = say("Is this fish fresh?")
    say("She sells sea shells.", VoiceSettings("en-gb-scotland", "f4", 220, 80, 20))
    np.testing.assert_array_equal(say("Is this fish fresh?"), first)


def test_every_voice_exists_and_differs_and_repeats_itself():
    """Repeats itself even if the process's own random state is not the same."""
    spoken = set()
    pairs = [(accent, "m3") for accent in ACCENTS]
    pairs += [("en-us", variant) for variant in ("", *FEMALE_VARIANTS, *MALE_VARIANTS) if variant != "m3"]
    c_library = ctypes.CDLL(None) if sys.platform != "win32" else ctypes.cdll.msvcrt
    for accent, variant in pairs:
        said = []
        for seed in (1, 2):
            c_library.srand(seed)
            with EspeakSynthesiser() as synthesiser:
                said.append(synthesiser.speak("This hot night.", VoiceSettings(accent, variant, 160, 50, 50)))
        np.testing.assert_array_equal(said[0], said[1], err_msg=f"{accent}+{variant}")
        assert said[0].dtype == np.int16
        assert np.abs(said[0]).max() > 500
        spoken.add(said[0].tobytes())
    assert len(spoken) == len(pairs)


@pytest.mark.parametrize(("language", "variant"), [("en-us", "nobody"), ("en-nowhere", "m3")])
def test_refuses_unknown_voices(language, variant):
    with EspeakSynthesiser() as synthesiser, pytest.raises(InputError, match=variant):
        synthesiser.speak("Hello", VoiceSettings(language, variant, 160, 50, 50))


def test_own_sentences_are_spoken_by_the_training_subset_only():
    own = [Sentence(f"this is sentence {word}", f"THIS IS SENTENCE {word.upper()}") for word in ("one", "two", "three")]
    long = Sentence("word " * 90, ("WORD " * 90).strip())
    assert not is_speakable(long)
    plan = plan_corpus(0.05, seed=0, train_sentences=[*own, long])
    by_subset = {s: [u.sentence.text for u in plan.utterances if u.subset == s] for s in SUBSETS}
    assert set(by_subset["train-generated"]) == {sentence.text for sentence in own}
    assert len(by_subset["train-generated"]) > 20
    assert not set(by_subset["train-generated"]) & {*by_subset["dev-generated"], *by_subset["test-generated"]}
    evaluation = [u for u in plan_corpus(0.05, seed=0).utterances if u.subset != "train-generated"]
    assert [u for u in plan.utterances if u.subset != "train-generated"] == evaluation


def test_no_speakable_sentence_exceeds_15_seconds():
    longest = Sentence("Strengths, lengths, months. " * 40, "STRENGTHS LENGTHS MONTHS")
    while not is_speakable(longest):
        longest = Sentence(longest.spoken.rpartition(" ")[0], longest.text)
    for accent in ("en-029", "en-gb-x-gbclan", "en-us"):
        with EspeakSynthesiser() as synthesiser:
            samples = synthesiser.speak(longest.spoken, VoiceSettings(accent, "m4", 129, 50, 50))  # the slowest
        assert 5 < len(samples) / synthesiser.sample_rate_hz < 14


def test_a_finished_corpus_is_reused_and_a_different_one_replaced_only_by_force(tmp_path, capsys):
    target = tmp_path / "corpus"
    arguments = ["--output_dir", str(target), "--hours", "0.003", "--num_workers", "1"]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert main(arguments) == 0
    assert "already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before

    assert main([*arguments, "--seed", "1"]) == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    assert main([*arguments, "--seed", "1", "--force"]) == 0
    assert json.loads((target / "corpus.json").read_text())["parameters"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]

    next(target.rglob("*.flac")).unlink()
    assert main([*arguments, "--seed", "1"]) == 2
    assert "missing files" in capsys.readouterr().err


def test_own_sentences_file_by_command(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("THE CAT SAT ON THE MAT\nWE CALL IT BEAR\n")
    arguments = ["--output_dir", str(tmp_path / "corpus"), "--hours", "0.004", "--num_workers", "1"]
    assert main([*arguments, "--sentences", str(tmp_path / "mine.txt")]) == 0
    spoken = set(transcripts(tmp_path / "corpus" / "train-generated").values())
    assert spoken == {"THE CAT SAT ON THE MAT", "WE CALL IT BEAR"}
    assert main(arguments) == 2
    assert "other sentences" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hours": 0.0}, "hours must lie between"),
        ({"hours": float("nan")}, "hours must lie between"),
        ({"num_workers": 0}, "num_workers"),
        ({"train_sentences": [Sentence("word " * 90, "WORD")]}, "short enough"),
    ],
)
def test_refuses_impossible_arguments(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        generate_corpus(tmp_path / "corpus", **{"hours": 0.003, "num_workers": 1, **changes})
    assert not list(tmp_path.iterdir())


def test_never_overwrites_what_is_not_a_generated_corpus(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for target in ("thesis", "file", "file/below"):
        for force in ([], ["--force"]):
            assert main(["--output_dir", str(tmp_path / target), "--hours", "0.003", *force]) == 2
            assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == (tmp_path / "file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis"]


def test_an_error_halfway_leaves_nothing_behind(tmp_path):
    silent = [Sentence("...", "NOTHING TO SAY")]
    with pytest.raises(InputError, match="NOTHING TO SAY"):
        generate_corpus(tmp_path / "corpus", hours=0.003, num_workers=2, train_sentences=silent)
    assert not list(tmp_path.iterdir())
