"""What a run trains on: several corpora, named problems, cropping, augmentation."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator

from lact_asr.data.corpora import load_corpus
from lact_asr.data.make_shar import main as make_shar
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary
from lact_asr.training.arguments import parse_arguments
from lact_asr.training.data_setup import join_training_corpora, load_training_corpora, make_training_loader

CUT_OFF_HEADER_BYTES = 9_000


@pytest.fixture
def damaged_corpus(corpus_dir, tmp_path):
    """A copy of the corpus with one training utterance of each kind of trouble; also returns their names by kind."""
    folder = tmp_path / "damaged"
    shutil.copytree(corpus_dir, folder)
    missing, garbage, cut_off, too_long, unlisted = sorted((folder / "train-generated").rglob("*.flac"))[:5]
    missing.unlink()
    garbage.write_bytes(b"not audio at all")
    cut_off.write_bytes(cut_off.read_bytes()[:CUT_OFF_HEADER_BYTES])
    for transcripts in (folder / "train-generated").rglob("*.trans.txt"):
        lines = [line for line in transcripts.read_text().splitlines() if not line.startswith(unlisted.stem)]
        lines = [line + " AND SO ON" * 60 if line.startswith(too_long.stem) else line for line in lines]
        transcripts.write_text("".join(line + "\n" for line in lines))
    return folder, {
        "missing audio file": missing.stem,
        "unreadable audio file": garbage.stem,
        "transcript longer than its frames": too_long.stem,
        "missing transcript line": unlisted.stem,
        "cut off": cut_off.stem,
    }


@pytest.fixture
def loader_of(corpus_dir, tmp_path):
    """The training loader that some flags give."""

    def make(*flags: object, data_dir=corpus_dir, clean_views=False):
        arguments = parse_arguments(
            ["--config_path", "-", "--data_dir", str(data_dir), "--train_subset", "train-generated", "--output_dir", "-",
             "--batch_size", "2", *map(str, flags)]
        )  # fmt: skip
        processor = HybridASRProcessor.from_vocabulary(build_vocabulary())
        corpora = load_training_corpora(arguments)
        corpus = join_training_corpora(corpora, arguments, processor, lambda samples: (samples - 400) // 320 + 1)
        return corpus, make_training_loader(corpus, arguments, processor, Accelerator(cpu=True), clean_views)

    return make


def by_id(loader, view: str = "input_values") -> dict[str, torch.Tensor]:
    """Each utterance's samples, without padding."""
    return {
        name: values[: int(mask.sum())]
        for batch in loader
        for name, values, mask in zip(batch["ids"], batch[view], batch["attention_mask"], strict=True)
    }


def test_damaged_utterances_are_named_counted_and_left_out(train, damaged_corpus):
    folder, names = damaged_corpus
    run = train("--data_dir", folder, "--max_epochs", 1)
    assert run.exit_code == 0
    unreadable_later = names.pop("cut off")  # its header is whole, so it is found out when it is decoded
    assert re.search(r"5 utterances, [\d.]+ h, 4 left out", run.out)
    for kind, name in names.items():
        assert f"1 × {kind}: {name}" in run.out
    left_out = json.loads((run.folder / "left_out.json").read_text())
    *at_start, while_training = left_out
    assert {problem["kind"]: problem["name"] for problem in at_start} == names
    assert while_training["name"] == unreadable_later
    assert 1 <= while_training["step"] <= 3
    assert all(problem["name"] in problem["reason"] for problem in left_out)
    assert f"could not be read: 1 left out: {unreadable_later}." in run.out
    assert run.state()["progress"]["step"] == 3


def test_a_corpus_of_which_nothing_can_be_decoded_ends_the_run(train, damaged_corpus):
    folder, names = damaged_corpus
    flags = ("--train_subset", "train-generated", "--data_dir", folder, "--max_steps", 3)
    for path in (folder / "train-generated").rglob("*.flac"):
        if path.stem != names["cut off"]:
            path.unlink()
    run = train(*flags)
    assert run.exit_code == 2
    assert f"None of the training recordings can be read; 1 left out: {names['cut off']}." in run.err


def test_extra_training_data_of_another_kind_is_added(train, write_manifest, tmp_path):
    write_manifest(tmp_path / "more.jsonl", 2)
    run = train("--extra_train_data", f"manifest:{tmp_path}:more", "--max_steps", 1)
    assert run.exit_code == 0
    assert re.search(r"train-generated .* \+ more .*: 11 utterances", run.out)


def test_every_extra_corpus_keeps_utterances_of_the_same_name_apart(corpus_dir, loader_of):
    extra = f"librispeech:{corpus_dir}:train-generated"
    corpus, loader = loader_of("--extra_train_data", extra, "--extra_train_data", extra)
    ids = [cut.id for cut in corpus.cuts]
    assert len(set(ids)) == len(ids) == 27
    assert sorted(by_id(loader)) == sorted(ids)
    first = ids[0]
    assert {first, f"extra1/{first}", f"extra2/{first}"} <= set(ids)


def test_an_extra_corpus_is_heard_as_often_as_its_weight_says(corpus_dir, loader_of):
    corpus, loader = loader_of("--extra_train_data", f"0.34*librispeech:{corpus_dir}:train-generated")
    assert len(corpus.cuts) == 18
    epochs = [[name for batch in loader for name in batch["ids"]] for _ in range(3)]
    main = {cut.id for cut in load_corpus(corpus_dir, "train-generated").cuts}
    for ids in epochs:
        assert len(ids) == len(set(ids)) == 9 + 3
        assert main < set(ids)
    assert len(set().union(*epochs)) == 18  # three thirds are all of it


def test_batches_hold_as_much_audio_as_allowed_at_the_slowest_speed_too(loader_of):
    corpus, loader = loader_of("--max_batch_duration", 10, "--speed_factors", "0.9", "--batch_size", 100)
    shapes = [batch["input_values"].shape for batch in loader]
    assert sum(rows for rows, _ in shapes) == len(corpus.cuts)
    assert max(rows * samples for rows, samples in shapes) <= 10 * 16_000
    assert max(rows for rows, _ in shapes) > 1


def test_a_duration_alone_limits_batches(train):
    run = train("--max_batch_duration", 60, "--batch_size", 9, "--max_epochs", 1)
    assert run.exit_code == 0
    assert "1 batches an epoch" in run.out
    assert parse_arguments(["--config_path", "-", "--data_dir", "-", "--output_dir", "-"]).batch_size == 8
    flags = ["--config_path", "-", "--data_dir", "-", "--output_dir", "-", "--max_batch_duration", "60"]
    assert parse_arguments(flags).batch_size is None


def test_shar_folders_train_and_validate(train, corpus_dir, tmp_path):
    flags = ["--data_dir", corpus_dir, "--subset", "train-generated,dev-generated", "--output_dir", tmp_path / "shar"]
    assert make_shar([str(flag) for flag in (*flags, "--shard_size", 4, "--num_workers", 1)]) == 0
    run = train("--dataset_type", "shar", "--data_dir", tmp_path / "shar", "--max_epochs", 1, "--num_workers", 1)
    assert run.exit_code == 0
    assert "9 utterances" in run.out
    assert run.state()["progress"]["step"] == 5


def test_manifests_train_validate_and_test(train, write_manifest, tmp_path):
    for name in ("a", "b", "c"):
        write_manifest(tmp_path / f"{name}.jsonl", 2)
    run = train(
        "--data_dir", tmp_path, "--dataset_type", "manifest", "--train_subset", "a,b", "--val_subset", "c",
        "--test_subset", "c", "--max_epochs", 1,
    )  # fmt: skip
    assert run.exit_code == 0
    assert "4 utterances" in run.out
    assert json.loads((run.folder / "test_results.json").read_text())["utterances"] == 2


def test_long_utterances_are_cropped_and_counted(train, loader_of, corpus_dir):
    durations = sorted(cut.duration for cut in load_corpus(corpus_dir, "train-generated").cuts)
    crop = round(0.99 * durations[-2] * 16_000)
    run = train("--crop_samples", crop, "--max_steps", 1)
    assert f"2 utterances cropped to {crop / 16_000:.1f} s" in run.out
    assert "Note: 22% of the utterances lose their ends" in run.out
    whole, cropped = by_id(loader_of("--crop_samples", 0)[1]), by_id(loader_of("--crop_samples", crop)[1])
    assert whole.keys() == cropped.keys()
    for name, samples in whole.items():
        assert len(cropped[name]) == min(crop, len(samples))


def test_longer_utterances_than_allowed_are_left_out(train, corpus_dir):
    durations = sorted(cut.duration for cut in load_corpus(corpus_dir, "train-generated").cuts)
    limit = (durations[-3] + durations[-4]) / 2
    assert f"3 × longer than {limit:g} s: " in train("--max_audio_duration", limit, "--max_steps", 1).out


def test_the_padding_that_is_printed_is_that_of_the_batches(train, loader_of):
    printed = float(re.search(r"([\d.]+)% of samples are padding", train("--max_steps", 1).out).group(1))
    masks = [batch["attention_mask"] for batch in loader_of()[1]]
    share = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert printed == pytest.approx(100 * share, abs=0.06)


def test_utterances_must_fit_at_the_highest_speed(loader_of, write_manifest, tmp_path):
    """A transcript that just fits its frames does not when the audio is played faster."""
    cut = write_manifest(tmp_path / "all.jsonl", 1)[0]
    frames = (round(cut.duration * 16_000) - 400) // 320 + 1
    audio = cut.recording.sources[0].source
    rows = [{"audio_filepath": audio, "text": "AB" * (count // 2), "id": str(count)} for count in (frames - 2, 8)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--dataset_type", "manifest", "--train_subset", "all")
    assert len(loader_of(*flags, data_dir=tmp_path)[0].cuts) == 2
    corpus, _ = loader_of(*flags, "--speed_factors", "1.0,1.1", data_dir=tmp_path)
    assert [cut.id for cut in corpus.cuts] == ["8"]
    assert corpus.problems[0].kind == "transcript longer than its frames"


def test_augmentation_follows_from_seed_utterance_and_epoch(loader_of, tmp_path):
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    soundfile.write(rooms / "hall.wav", np.geomspace(1, 1e-3, 4_000), 16_000)
    noisy = ("--speed_factors", "0.9,1,1.1", "--noise_dir", noise, "--noise_snr_db", "0,10", "--noise_prob", 1)
    flags = (*noisy, "--rir_dir", rooms)
    loader = loader_of(*flags)[1]
    first, second = by_id(loader), by_id(loader)  # two epochs
    again, plain, other = by_id(loader_of(*flags)[1]), by_id(loader_of()[1]), by_id(loader_of(*flags, "--seed", 1)[1])
    assert len({round(len(first[name]) / len(plain[name]), 1) for name in plain}) > 1
    dry = by_id(loader_of(*noisy)[1])
    assert 0 < sum(torch.equal(dry[name], samples) for name, samples in first.items()) < len(first)
    for name, samples in first.items():
        assert torch.equal(samples, again[name])
        for different in (second, plain, other):
            assert not torch.equal(samples, different[name])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_clean_views_are_the_noisy_ones_before_their_noise(loader_of, num_workers):
    speeds = ("--speed_factors", "0.9,1,1.1")
    noise = (*speeds, "--noise_colours", "white", "--noise_snr_db", "0,10", "--num_workers", num_workers)

    def views(loader, epoch: int, view: str = "input_values"):
        loader.set_epoch(epoch)
        return by_id(loader, view)

    loader, noisy_alone, clean_alone = (
        loader_of(*flags, clean_views=clean_views)[1]
        for flags, clean_views in ((noise, True), (noise, False), (speeds, False))
    )
    for epoch in range(2):
        noisy, clean = views(loader, epoch), views(loader, epoch, "clean_input_values")
        for found, expected in ((noisy, views(noisy_alone, epoch)), (clean, views(clean_alone, epoch))):
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        without_noise = [name for name in noisy if torch.equal(noisy[name], clean[name])]
        assert 0 < len(without_noise) < len(noisy)
    loader.set_epoch(0)
    for batch in loader:
        assert batch["clean_input_values"].shape == batch["input_values"].shape
        assert not batch["clean_input_values"][batch["attention_mask"] == 0].any()
    assert "clean_input_values" not in next(iter(noisy_alone))
