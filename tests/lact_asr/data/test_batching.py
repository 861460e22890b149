"""Batches: contents, epochs, ranks, resumption, unreadable files, cache, workers."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lact_asr.audio import read_audio
from lact_asr.data.batching import SpeechDataLoader, WaveformCache, make_dataloader
from lact_asr.data.corpora import load_corpus
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary

REAL_DATA = Path(os.environ.get("LACT_ASR_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
NUM_UTTERANCES = 23


@pytest.fixture(scope="module")
def processor():
    return HybridASRProcessor.from_vocabulary(build_vocabulary())


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """A LibriSpeech subset "dev" of filtered noise, 0.1 to 0.54 s."""
    root = tmp_path_factory.mktemp("corpus")
    folder = root / "dev/1/1"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = []
    for number in range(NUM_UTTERANCES):
        samples = np.convolve(generator.standard_normal(1_600 + 320 * number), np.ones(4) / 20, mode="same")
        soundfile.write(folder / f"1-1-{number:04d}.flac", samples, 16_000)
        lines.append(f"1-1-{number:04d} {'ABCDEFG HIJ'[: 1 + number % 11]}")
    (folder / "1-1.trans.txt").write_text("\n".join(lines))
    return root


@pytest.fixture
def cuts(corpus_folder):
    return load_corpus(corpus_folder, "dev").cuts


def epoch_ids(loader) -> list[list[str]]:
    return [batch["ids"] for batch in loader]


def flat(batches: list[list[str]]) -> list[str]:
    return [name for batch in batches for name in batch]


def test_a_batch_is_normalised_padded_and_labelled(cuts, processor):
    seen = 0
    for batch in make_dataloader(cuts, processor, 4, shuffle=True, seed=3):
        assert batch["input_values"].dtype == torch.float32
        assert (batch["attention_mask"].dtype, batch["labels"].dtype) == (torch.bool, torch.int64)
        assert batch["input_values"].shape == batch["attention_mask"].shape
        for row, name in enumerate(batch["ids"]):
            samples = read_audio(cuts[name].recording.sources[0].source)
            length = int(batch["attention_mask"][row].sum())
            assert length == len(samples)
            assert batch["attention_mask"][row, :length].all()
            expected = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
            np.testing.assert_allclose(batch["input_values"][row, :length], expected, atol=1e-4)
            assert not batch["input_values"][row, length:].any()
            labels = batch["labels"][row]
            assert batch["texts"][row] == cuts[name].supervisions[0].text
            assert processor.tokenizer.decode(labels[labels >= 0], group_tokens=False) == batch["texts"][row]
            assert (labels[len(batch["texts"][row]) :] == -100).all()
            seen += 1
    assert seen == NUM_UTTERANCES


def test_every_epoch_has_every_utterance_once_in_another_order(cuts, processor):
    loader = make_dataloader(cuts, processor, 4, shuffle=True, seed=1)
    epochs = [epoch_ids(loader) for _ in range(3)]
    assert all(sorted(flat(epoch)) == sorted(cut.id for cut in cuts) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert loader.epoch == 3
    loader.set_epoch(1)
    assert epoch_ids(loader) == epochs[1]
    assert epoch_ids(make_dataloader(cuts, processor, 4, shuffle=True, seed=1)) == epochs[0]
    assert epoch_ids(make_dataloader(cuts, processor, 4, shuffle=True, seed=2)) != epochs[0]


def test_evaluation_is_longest_first_and_always_the_same(cuts, processor):
    loader = make_dataloader(cuts, processor, 5, shuffle=False)
    first = epoch_ids(loader)
    assert flat(first) == [f"1-1-{number:04d}" for number in reversed(range(NUM_UTTERANCES))]
    next(iter(loader))
    assert epoch_ids(loader) == first
    assert len(loader) == len(first) == 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_gives_exactly_the_rest(cuts, processor, num_workers):
    options = {"shuffle": True, "seed": 5, "num_workers": num_workers}
    loader = make_dataloader(cuts, processor, 4, **options)
    epochs = [epoch_ids(loader), epoch_ids(loader)]
    interrupted = make_dataloader(cuts, processor, 4, **options)
    epoch_ids(interrupted)
    iterator = iter(interrupted)
    taken = [next(iterator)["ids"] for _ in range(2)]
    state = interrupted.state_dict()
    assert (state["epoch"], state["batches_done"]) == (1, 2)
    resumed = make_dataloader(cuts, processor, 4, **options)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert taken + epoch_ids(resumed) == epochs[1]
    assert resumed.state_dict() == {"epoch": 2, "batches_done": 0, "processes": 1, "earlier_parts": []}


def test_workers_give_the_same_batches(cuts, processor):
    def add_noise(samples, key):
        return samples + np.random.default_rng(len(key) + ord(key[-1])).standard_normal(len(samples)).astype(np.float32)

    one = make_dataloader(cuts, processor, 4, shuffle=True, transform=add_noise, cache_bytes=2**20)
    two = make_dataloader(cuts, processor, 4, shuffle=True, transform=add_noise, cache_bytes=2**20, num_workers=2)
    for _ in range(2):
        for left, right in zip(one, two, strict=True):
            assert left["ids"] == right["ids"]
            assert torch.equal(left["input_values"], right["input_values"])
            assert torch.equal(left["labels"], right["labels"])


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_whole_batches(cuts, processor, shuffle):
    whole = epoch_ids(make_dataloader(cuts, processor, 4, shuffle=shuffle))
    ranks = [
        epoch_ids(make_dataloader(cuts, processor, 4, shuffle=shuffle, world_size=4, rank=rank)) for rank in range(4)
    ]
    assert len(whole) == 6
    if shuffle:  # two batches are halved, so that every rank takes two steps
        assert [len(batches) for batches in ranks] == [2] * 4
        assert sorted(flat(batch for batches in ranks for batch in batches)) == sorted(cut.id for cut in cuts)
    else:
        assert ranks == [[whole[0], whole[4]], [whole[1], whole[5]], [whole[2]], [whole[3]]]


def test_cropping_keeps_the_start_and_the_transcript(cuts, processor):
    name = f"1-1-{NUM_UTTERANCES - 1:04d}"
    for batch in make_dataloader(cuts, processor, 4, shuffle=False, crop_samples=2_000):
        assert batch["input_values"].shape[1] <= 2_000
        if name in batch["ids"]:
            row = batch["ids"].index(name)
            start = read_audio(cuts[name].recording.sources[0].source)[:2_000]
            np.testing.assert_allclose(
                batch["input_values"][row], (start - start.mean()) / np.sqrt(start.var() + 1e-7), atol=1e-4
            )
            assert batch["texts"][row] == cuts[name].supervisions[0].text


def test_a_manifest_offset_is_honoured(tmp_path, processor):
    ramp = np.linspace(-0.5, 0.5, 16_000)
    soundfile.write(tmp_path / "a.wav", ramp, 16_000)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav", "text": "x", "offset": 0.25, "duration": 0.5}\n')
    loader = make_dataloader(load_corpus(tmp_path, "m", "manifest").cuts, processor, 1, shuffle=False)
    part = loader.dataset._read(0)
    np.testing.assert_allclose(part, ramp[4_000:12_000], atol=2**-15)


def test_transform_sees_the_id_and_how_often_the_utterance_was_drawn_before(cuts, processor):
    keys = []

    def note(samples, key):
        keys.append(key)
        return samples

    loader = make_dataloader(cuts, processor, 8, shuffle=True, transform=note)
    epoch_ids(loader)
    assert sorted(keys) == sorted(cut.id for cut in cuts)
    keys.clear()
    epoch_ids(loader)
    assert sorted(keys) == sorted(f"{cut.id}#1" for cut in cuts)


@pytest.fixture
def spoilt_cuts(tmp_path):
    """Nine utterances of which the three longest are truncated after the corpus was loaded."""
    folder = tmp_path / "dev/1/1"
    folder.mkdir(parents=True)
    for number in range(9):
        samples = 0.1 * np.random.default_rng(number).standard_normal(3_200 + 160 * number)
        soundfile.write(folder / f"1-1-{number:04d}.flac", samples, 16_000)
    (folder / "1-1.trans.txt").write_text("\n".join(f"1-1-{number:04d} GO" for number in range(9)))
    cuts = load_corpus(tmp_path, "dev").cuts
    for number in (6, 7, 8):
        path = folder / f"1-1-{number:04d}.flac"
        path.write_bytes(path.read_bytes()[:2_000])
    return cuts


def test_unreadable_files_are_named_once_and_left_out(spoilt_cuts, processor, caplog):
    loader = make_dataloader(spoilt_cuts, processor, 2, shuffle=False)
    with caplog.at_level(logging.WARNING):
        first, second = epoch_ids(loader), epoch_ids(loader)
    # Batches by length: (8, 7) is skipped whole, of (6, 5) the readable one remains.
    assert first == second == [["1-1-0005"], ["1-1-0004", "1-1-0003"], ["1-1-0002", "1-1-0001"], ["1-1-0000"]]
    assert sorted(loader.problems) == ["1-1-0006", "1-1-0007", "1-1-0008"]
    assert len(caplog.records) == 3
    assert all("truncated" in problem.sentence for problem in loader.problems.values())


def test_with_several_ranks_an_unreadable_batch_does_not_cost_a_step(spoilt_cuts, processor):
    for seed in range(6):
        ranks = [
            epoch_ids(make_dataloader(spoilt_cuts, processor, 2, shuffle=True, seed=seed, world_size=2, rank=rank))
            for rank in range(2)
        ]
        assert [len(batches) for batches in ranks] == [3, 3]
        assert set(flat(ranks[0] + ranks[1])) == {f"1-1-{number:04d}" for number in range(6)}


@pytest.mark.parametrize("seed", range(4))
def test_with_several_ranks_a_resumed_epoch_replaces_unreadable_batches_by_the_same_ones(spoilt_cuts, processor, seed):
    def loader(rank: int) -> SpeechDataLoader:
        return make_dataloader(spoilt_cuts, processor, 1, shuffle=True, seed=seed, world_size=2, rank=rank)

    whole, main = [epoch_ids(loader(rank)) for rank in range(2)], loader(0)
    states = [main.state_dict() for _ in main]  # those of the main process are all that is saved
    assert len(states) == len(whole[0]) == len(whole[1]) == 5
    for done, state in enumerate(states, start=1):
        for rank in range(2):
            resumed = loader(rank)
            resumed.load_state_dict(state)
            assert epoch_ids(resumed) == whole[rank][done:]


def test_a_rank_with_nothing_to_read_says_so(spoilt_cuts, processor):
    unreadable = [cut for cut in spoilt_cuts if cut.id >= "1-1-0006"]
    with pytest.raises(InputError, match="None of the 2 batches of this process"):
        list(make_dataloader(unreadable, processor, 1, shuffle=True, world_size=2, rank=0))


def test_cache_is_exact_bounded_and_used(cuts, processor):
    cached = make_dataloader(cuts, processor, 4, shuffle=False, cache_bytes=60_000)
    plain = make_dataloader(cuts, processor, 4, shuffle=False)
    for _ in range(2):
        for left, right in zip(cached, plain, strict=True):
            assert torch.equal(left["input_values"], right["input_values"])
    cache = cached.dataset.cache
    held = [index for index in range(NUM_UTTERANCES) if cache.get(index) is not None]
    assert held == list(range(cache.num_slots))
    assert 0 < sum(4 * len(cache.get(index)) for index in held) <= 60_000
    cache.put(0, np.zeros(1_600, np.float32))
    np.testing.assert_array_equal(cached.dataset._read(0), np.zeros(1_600))


def test_cache_keeps_what_fits_and_hands_out_copies():
    cache = WaveformCache([1_000, 1_000, 1_000], limit_bytes=2 * 4 * 1_100)
    assert cache.num_slots == 2
    cache.put(1, np.ones(1_000, np.float32))
    cache.put(2, np.ones(1_000, np.float32))
    cache.put(0, np.ones(2_000, np.float32))  # longer than announced
    assert cache.get(0) is None
    assert cache.get(2) is None
    cache.get(1)[:] = 5
    assert (cache.get(1) == 1).all()


def test_cache_is_shared_by_workers(cuts, processor):
    loader = make_dataloader(cuts, processor, 4, shuffle=True, cache_bytes=2**22, num_workers=2)
    epoch_ids(loader)
    assert all(loader.dataset.cache.get(index) is not None for index in range(NUM_UTTERANCES))


def test_nothing_to_batch_is_an_input_error(cuts, processor):
    with pytest.raises(InputError, match="from 0 utterances"):
        make_dataloader([], processor, 4, shuffle=True)
    with pytest.raises(InputError, match="batches of 0"):
        make_dataloader(cuts, processor, 0, shuffle=True)


def test_one_utterance_makes_one_batch(cuts, processor):
    assert epoch_ids(make_dataloader([cuts[0]], processor, 8, shuffle=True)) == [[cuts[0].id]]


@pytest.mark.real_data
@pytest.mark.parametrize("batch_size", [8, 16])
def test_padding_and_reading_of_real_speech(processor, batch_size):
    if not REAL_DATA.is_dir():
        pytest.skip(f"no recordings in {REAL_DATA} (set LACT_ASR_DATA)")
    cuts = load_corpus(REAL_DATA / "speechocean762", "train", "manifest").cuts
    loader = make_dataloader(cuts, processor, batch_size, shuffle=True, crop_samples=250_000)
    assert loader.padding_fraction() < 0.05
    lengths = loader.plan.sample_lengths()[:3]
    for batch, expected in zip(loader, lengths, strict=False):
        assert batch["attention_mask"].sum(1).tolist() == expected
        assert batch["input_values"].shape == (batch_size, max(expected))
