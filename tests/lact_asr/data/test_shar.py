"""Shar folders: what goes in comes out, by our reader and by lhotse's; interrupted and damaged ones; training from them."""

import gzip
import json

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.shar import SharWriter

from lact_asr.audio import read_audio
from lact_asr.data import shar_writing
from lact_asr.data.batching import make_dataloader
from lact_asr.data.corpora import load_corpus, read_cut
from lact_asr.data.make_shar import main
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary

COUNT = 11


def tone(number: int) -> np.ndarray:
    """0.1 s and more of another tone for each number, float [samples] of 16-bit values."""
    samples = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(1_600 + 160 * number) / 16_000)
    return np.round(samples * 32768) / 32768


@pytest.fixture
def librispeech(tmp_path):
    """Subset "dev" of eleven FLAC files by two speakers."""
    for number in range(COUNT):
        chapter = tmp_path / "corpus/dev" / str(number % 2) / "1"
        chapter.mkdir(parents=True, exist_ok=True)
        name = f"{number % 2}-1-{number:04d}"
        soundfile.write(chapter / f"{name}.flac", tone(number), 16_000)
        with (chapter / f"{number % 2}-1.trans.txt").open("a") as file:
            file.write(f"{name} {'ABCDEFGHIJK'[: number + 1]}\n")
    (tmp_path / "corpus/SPEAKERS.TXT").write_text("0 | F | dev | 1 | X\n")
    return tmp_path / "corpus"


@pytest.fixture
def convert(librispeech, tmp_path):
    """Run the command; shards of four recordings."""

    def run(*flags: object) -> int:
        common = ["--data_dir", librispeech, "--subset", "dev", "--output_dir", tmp_path / "shar", "--shard_size", 4]
        return main([str(flag) for flag in (*common, "--num_workers", 2, *flags)])

    return run


def content(corpus) -> dict:
    """Everything that training sees of each utterance."""
    return {
        cut.id: (cut.supervisions[0].text, cut.supervisions[0].speaker, cut.supervisions[0].gender, cut.supervisions[0].custom)
        for cut in corpus.cuts
    }  # fmt: skip


def files(folder) -> dict[str, bytes]:
    """What the files hold; gzip notes the time."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: gzip.decompress(held) if name.endswith(".gz") else held for name, held in contents.items()}


def test_what_goes_in_comes_out(librispeech, convert, tmp_path, capsys):
    assert convert() == 0
    assert "dev: 11 utterances, 0 left out" in capsys.readouterr().out
    before, after = load_corpus(librispeech, "dev"), load_corpus(tmp_path / "shar", "dev", "shar")
    assert content(after) == content(before)
    assert after.problems == []
    for cut in before.cuts:
        np.testing.assert_array_equal(read_cut(after.cuts[cut.id]), read_cut(cut))
        assert after.cuts[cut.id].duration == cut.duration
    assert [cut.id for cut in after.cuts] != [cut.id for cut in before.cuts]  # speakers are mixed
    assert len(list((tmp_path / "shar/dev").glob("recording.*.tar"))) == 3
    assert sorted(path.name for path in (tmp_path / "shar").iterdir()) == ["dev", "dev.json"]


def test_lhotse_reads_the_folder(librispeech, convert, tmp_path):
    convert("--keep_order")
    cuts = list(CutSet.from_shar(in_dir=tmp_path / "shar/dev"))
    assert [cut.id for cut in cuts] == [cut.id for cut in load_corpus(librispeech, "dev").cuts]
    for cut in cuts:
        np.testing.assert_allclose(cut.load_audio()[0], tone(int(cut.id[-4:])), atol=1e-6)


def test_a_folder_that_lhotse_wrote_is_read(librispeech, tmp_path):
    cuts = load_corpus(librispeech, "dev").cuts
    (tmp_path / "shar/dev").mkdir(parents=True)
    with SharWriter(tmp_path / "shar/dev", {"recording": "flac"}, shard_size=5) as writer:
        for cut in cuts:
            writer.write(cut)
    corpus = load_corpus(tmp_path / "shar", "dev", "shar")
    assert content(corpus) == content(load_corpus(librispeech, "dev"))
    for cut in corpus.cuts:
        np.testing.assert_allclose(read_cut(cut), tone(int(cut.id[-4:])), atol=1e-6)


def test_flac_files_are_copied_and_others_encoded(tmp_path):
    samples, stereo = tone(3), np.stack([tone(4), tone(4) / 2], axis=1)
    soundfile.write(tmp_path / "a.flac", samples, 16_000, subtype="PCM_24")
    soundfile.write(tmp_path / "b.wav", samples, 16_000)
    soundfile.write(tmp_path / "c.flac", stereo, 48_000)
    soundfile.write(tmp_path / "d.flac", np.concatenate([samples, samples]), 16_000)
    rows = [{"audio_filepath": name, "text": "x"} for name in ("a.flac", "b.wav", "c.flac")]
    rows.append({"audio_filepath": "d.flac", "text": "x", "offset": 0.05, "duration": 0.1, "age": 7})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data_dir", tmp_path, "--dataset_type", "manifest", "--subset", "m", "--output_dir", tmp_path / "shar"]
    assert main(list(map(str, flags))) == 0
    before = load_corpus(tmp_path, "m", "manifest").cuts
    after = load_corpus(tmp_path / "shar", "m", "shar").cuts
    assert after["a"].recording.sources[0].source.read_bytes() == (tmp_path / "a.flac").read_bytes()
    np.testing.assert_array_equal(read_cut(after["b"]), samples.astype(np.float32))
    for name in ("c", "d@0.05"):
        np.testing.assert_allclose(read_cut(after[name]), read_cut(before[name]), atol=2**-16)
    assert after["d@0.05"].supervisions[0].custom == {"age": 7}


def test_opus_keeps_lengths_and_is_not_encoded_twice(librispeech, convert, tmp_path):
    assert convert("--audio_format", "opus") == 0
    cuts = load_corpus(tmp_path / "shar", "dev", "shar").cuts
    for cut in cuts:
        expected, read = tone(int(cut.id[-4:])), read_cut(cut)
        assert len(read) == len(expected)
        peaks = [np.argmax(np.abs(np.fft.rfft(samples))) for samples in (read, expected)]
        assert abs(peaks[0] - peaks[1]) <= 1
    flags = ["--data_dir", tmp_path / "shar", "--dataset_type", "shar", "--subset", "dev", "--audio_format", "opus"]
    assert main([str(flag) for flag in (*flags, "--output_dir", tmp_path / "again", "--shard_size", 7)]) == 0
    for cut in load_corpus(tmp_path / "again", "dev", "shar").cuts:
        first, second = (some.recording.sources[0].source.read_bytes() for some in (cuts[cut.id], cut))
        assert first == second


def test_an_interrupted_conversion_goes_on_and_ends_with_the_same_files(convert, tmp_path, monkeypatch, capsys):
    convert()
    expected = files(tmp_path / "shar/dev")
    (tmp_path / "shar").rename(tmp_path / "whole")
    written = []
    real = shar_writing.write_shard

    def dying(folder, number, *arguments):
        if written and not (tmp_path / "second run").exists():
            (folder / ".shard-dead").mkdir()  # what a kill leaves
            raise KeyboardInterrupt
        written.append(number)
        return real(folder, number, *arguments)

    monkeypatch.setattr(shar_writing, "write_shard", dying)
    monkeypatch.setattr(shar_writing, "ProcessPoolExecutor", _InThisProcess)
    assert convert() == 130
    assert [path.name for path in (tmp_path / "shar").iterdir()] == [".dev.part"]
    with pytest.raises(InputError, match="no Shar folder 'dev'"):
        load_corpus(tmp_path / "shar", "dev", "shar")
    (tmp_path / "second run").touch()
    capsys.readouterr()
    assert convert("--audio_format", "opus") == 2
    assert ".dev.part was begun from another corpus or with other settings" in capsys.readouterr().err
    assert convert() == 0
    assert sorted(written) == ["000000", "000001", "000002"]  # none twice
    assert files(tmp_path / "shar/dev") == expected
    assert convert() == 2
    assert "dev exists already" in capsys.readouterr().err


class _InThisProcess:
    """A pool of no processes, so that a test can stop it at a known place."""

    def __init__(self, _num_workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def shutdown(self, **_):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(shar_writing.write_shard(*arguments))
        return future


def test_what_cannot_be_decoded_is_left_out_by_name(librispeech, convert, tmp_path, capsys):
    path = librispeech / "dev/0/1/0-1-0010.flac"
    path.write_bytes(path.read_bytes()[:1_000])
    (librispeech / "dev/1/1/1-1-0001.flac").unlink()
    assert convert() == 0
    assert "dev: 9 utterances, 2 left out" in capsys.readouterr().out
    summary = json.loads((tmp_path / "shar/dev.json").read_text())
    assert {row["name"]: row["kind"] for row in summary["left_out"]} == {
        "0-1-0010": "unreadable audio file", "1-1-0001": "missing audio file",
    }  # fmt: skip
    assert summary["utterances"] == len(load_corpus(tmp_path / "shar", "dev", "shar").cuts) == 9


def test_an_interrupted_conversion_counts_what_it_left_out_once(librispeech, convert, tmp_path, monkeypatch):
    for path in (librispeech / "dev/0").rglob("*.flac"):  # six: all of a shard, and more
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with monkeypatch.context() as patched:
        patched.setattr(shar_writing, "_write_summary", _full_disk)  # just before the folder is put into place
        assert convert("--keep_order") == 2
    assert convert("--keep_order") == 0
    summary = json.loads((tmp_path / "shar/dev.json").read_text())
    assert (summary["utterances"], len(summary["left_out"])) == (5, 6)
    assert not [
        path
        for path in (tmp_path / "shar/dev").iterdir()
        if not path.name.startswith(("cuts", "recording", "tar_place"))
    ]


@pytest.mark.parametrize("place", ["./{}", "sub//{}", "{folder}/sub/../{}"])
def test_utterances_are_found_again_however_their_paths_are_written(tmp_path, place):
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    for number in range(3):
        for where in (folder, folder / "sub"):
            soundfile.write(where / f"{number}.b.flac", tone(number), 16_000)
    rows = [
        {"audio_filepath": place.format(f"{number % 3}.b.flac", folder=folder), "text": "GO"} for number in range(4)
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data_dir", folder, "--dataset_type", "manifest", "--subset", "m", "--output_dir", tmp_path / "shar"]
    assert main([*map(str, flags), "--num_workers", "1"]) == 0
    ids = [cut.id for cut in load_corpus(folder, "m", "manifest").cuts]
    assert len(ids) == 4
    for with_places in (True, False):
        if not with_places:
            (tmp_path / "shar/m/tar_place.000000.jsonl.gz").unlink()  # as lhotse writes folders
        corpus = load_corpus(tmp_path / "shar", "m", "shar")
        assert sorted(cut.id for cut in corpus.cuts) == sorted(ids)
        assert not corpus.problems


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(convert, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shar_writing, "write_shard", _full_disk)
    assert convert() == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"error: {tmp_path / 'shar/dev'} cannot be written: No space left on device")
    assert "goes on where it stopped" in err
    monkeypatch.undo()
    assert convert() == 0


def _full_disk(*_):
    raise OSError(28, "No space left on device")


def test_damaged_shards_are_problems(convert, tmp_path):
    convert()
    folder = tmp_path / "shar/dev"
    (folder / "recording.000000.tar").unlink()
    (folder / "tar_place.000000.jsonl.gz").unlink()
    (folder / "cuts.000001.jsonl.gz").write_bytes(b"not gzip")
    tar = folder / "recording.000002.tar"
    tar.write_bytes(tar.read_bytes()[:5_000])
    corpus = load_corpus(tmp_path / "shar", "dev", "shar")
    assert [problem.kind for problem in corpus.problems] == ["unreadable shard"] * 2
    assert len(corpus.cuts) == 3
    last = list(corpus.cuts)[-1]
    with pytest.raises(InputError, match=rf"{last.id} in .*recording\.000002\.tar"):
        read_cut(last)


def test_a_row_without_transcript_is_a_problem(convert, tmp_path):
    convert("--shard_size", 20)
    path = tmp_path / "shar/dev/cuts.000000.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    del rows[0]["supervisions"]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    corpus = load_corpus(tmp_path / "shar", "dev", "shar")
    assert [(problem.name, problem.kind) for problem in corpus.problems] == [(rows[0]["id"], "missing transcript")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_hold_the_same_audio_and_resume_exactly(librispeech, convert, tmp_path, num_workers):
    convert()
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary())

    def loader():
        cuts = load_corpus(tmp_path / "shar", "dev", "shar").cuts
        return make_dataloader(cuts, processor, 2, shuffle=True, num_workers=num_workers)

    epoch = list(loader())
    assert sorted(name for batch in epoch for name in batch["ids"]) == sorted(content(load_corpus(librispeech, "dev")))
    for batch in epoch:
        for row, name in enumerate(batch["ids"]):
            assert int(batch["attention_mask"][row].sum()) == len(tone(int(name[-4:])))
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches_done": 3})
    for left, right in zip(resumed, epoch[3:], strict=True):
        assert left["ids"] == right["ids"]
        assert left["input_values"].equal(right["input_values"])


def test_unknown_folders_name_those_that_are_there(convert, tmp_path):
    convert()
    with pytest.raises(InputError, match=r"no Shar folder 'dav' in .*: there is dev"):
        load_corpus(tmp_path / "shar", "dav", "shar")


def test_a_member_reads_as_a_file_of_its_own(convert, librispeech, tmp_path):
    convert()
    cut = load_corpus(tmp_path / "shar", "dev", "shar").cuts["0-1-0004"]
    member = cut.recording.sources[0].source
    np.testing.assert_array_equal(
        read_audio(member, 0.02, 0.05), read_audio(librispeech / "dev/0/1/0-1-0004.flac", 0.02, 0.05)
    )
