"""Which utterances share a batch: padding, limits, epochs, weights, ranks, exact positions, shards in turn."""

import random
from collections import Counter

import numpy as np
import pytest
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from lact_asr.data import batch_plan
from lact_asr.data.augmentation import WaveformAugmentation
from lact_asr.data.batch_plan import BatchPlan, Draw, draw_key, padding_fraction
from lact_asr.data.batching import SpeechDataLoader
from lact_asr.data.corpora import cut_samples

# Durations of LibriSpeech's training subsets: utterances (its README), and their quantiles in seconds as icefall lists
# them (egs/librispeech/ASR/local/display_manifest_statistics.py). icefall's include copies at 0.9 and 1.1 times the
# speed, which spread a little more; linear interpolation between the quantiles gives 961.4 h, the corpus has 960.9 h.
QUANTILES = (0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1)
LIBRISPEECH_SECONDS = {
    28_539: (1.3, 1.9, 2.2, 2.5, 4.2, 6.4, 11.4, 13.8, 15.3, 16.7, 17.3, 18.1, 18.4, 18.8, 27.2),  # train-clean-100
    104_014: (1.0, 1.8, 2.2, 2.5, 4.2, 6.2, 11.2, 13.7, 15.3, 16.6, 17.3, 18.1, 18.4, 18.8, 33.0),  # train-clean-360
    148_688: (0.8, 1.7, 2.1, 2.3, 3.5, 5.0, 9.8, 13.4, 15.1, 16.5, 17.2, 18.1, 18.4, 18.9, 31.0),  # train-other-500
}


def make_cuts(durations_seconds) -> list[MonoCut]:
    """Cuts without files, for planning alone."""
    cuts = []
    for number, seconds in enumerate(durations_seconds):
        name = str(number)
        recording = Recording(name, [AudioSource("file", [0], name)], 16_000, round(16_000 * seconds), seconds)
        supervision = SupervisionSegment(name, name, 0.0, seconds, text="A")
        cuts.append(MonoCut(name, 0.0, seconds, 0, supervisions=[supervision], recording=recording))
    return cuts


def synthetic_cuts(count: int, shortest_seconds: float = 2.0, longest_seconds: float = 12.0) -> list[MonoCut]:
    generator = random.Random(0)
    return make_cuts(round(generator.uniform(shortest_seconds, longest_seconds), 3) for _ in range(count))


def drawn(batches) -> Counter:
    """How often each utterance is in the batches."""
    return Counter(draw.index for batch in batches for draw in batch)


@pytest.fixture(scope="module")
def librispeech_cuts():
    """Every fiftieth utterance of train-960."""
    seconds = np.concatenate(
        [
            np.interp((np.arange(count) + 0.5) / count, QUANTILES, values)
            for count, values in LIBRISPEECH_SECONDS.items()
        ]
    )
    assert len(seconds) == 281_241
    assert seconds.sum() / 3600 == pytest.approx(960.9, rel=1e-3)
    return make_cuts(seconds[::50].tolist())


@pytest.mark.parametrize(
    "limits", [{"batch_size": None, "max_batch_seconds": 240.0}, {"batch_size": 16}], ids=["240 s", "16 utterances"]
)
def test_librispeech_is_padded_by_less_than_a_twentieth(librispeech_cuts, limits):
    plan = BatchPlan(librispeech_cuts, shuffle=True, **limits)
    lengths = plan.sample_lengths()
    assert padding_fraction(lengths) < 0.05
    assert set(drawn(plan.batches()).values()) == {1}
    assert len(drawn(plan.batches())) == len(librispeech_cuts)
    padded_seconds = [max(batch) * len(batch) / 16_000 for batch in lengths]
    if limits["batch_size"] is None:
        assert max(padded_seconds) <= 240
        assert np.mean(padded_seconds) > 0.9 * 240
    unbucketed = BatchPlan(librispeech_cuts, shuffle=True, num_buckets=1, **limits)
    assert padding_fraction(unbucketed.sample_lengths()) > 0.15


def test_speed_perturbation_pads_no_more(librispeech_cuts):
    """Batches are of what will be equally long, which only the audio as it is read can tell."""
    augmentation = WaveformAugmentation((0.9, 1.0, 1.1), seed=3)
    plan = BatchPlan(librispeech_cuts, 32, shuffle=True, max_batch_seconds=200.0, speeds=augmentation)

    def samples_heard(draw: Draw) -> int:
        cut = librispeech_cuts[draw.index]
        return len(augmentation(np.zeros(cut_samples(cut), np.float32), draw_key(cut, draw)))

    heard = [[samples_heard(draw) for draw in batch] for batch in plan.batches()[:40]]
    assert padding_fraction(heard) < 0.05
    assert padding_fraction(heard) == pytest.approx(padding_fraction(plan.sample_lengths()[:40]), abs=1e-4)
    assert max(max(lengths) * len(lengths) for lengths in heard) <= 200.01 * 16_000


@pytest.mark.parametrize("batch_size", [8, 16])
@pytest.mark.parametrize("count", [600, 3000])
def test_default_buckets_keep_padding_under_a_tenth(batch_size, count):
    plan = BatchPlan(synthetic_cuts(count), batch_size, shuffle=True)
    for epoch in range(2):
        assert padding_fraction(plan.sample_lengths(epoch)) < 0.1
        assert drawn(plan.batches(epoch)) == Counter(range(count))
        # No partial batches beside the unavoidable one.
        assert len(plan.batches(epoch)) == -(-count // batch_size)
    unbucketed = BatchPlan(plan.cuts, batch_size, shuffle=True, num_buckets=1)
    assert padding_fraction(unbucketed.sample_lengths()) > 0.25


def test_padding_fraction_by_hand():
    assert padding_fraction([[10, 5], [4]]) == pytest.approx(5 / 24)
    assert padding_fraction([]) == 0.0


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [None, 10])
def test_no_padded_batch_is_longer_than_the_limit(shuffle, batch_size):
    cuts = [*synthetic_cuts(500), *make_cuts([70.0])]
    cuts[-1].id = "longer than the limit"
    lengths = BatchPlan(cuts, batch_size, shuffle, max_batch_seconds=60.0).sample_lengths()
    assert sum(map(len, lengths)) == 501
    assert [len(batch) for batch in lengths if max(batch) * len(batch) > 60 * 16_000] == [1]
    largest = max(map(len, lengths))
    assert largest == 10 if batch_size else largest > 12


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("limits", [(8, None), (None, 60.0)], ids=["utterances", "seconds"])
def test_ranks_take_equally_many_steps_and_together_every_utterance_once(world_size, limits):
    plan = BatchPlan(synthetic_cuts(301), limits[0], shuffle=True, max_batch_seconds=limits[1])
    for epoch in range(4):
        ranks = [plan.rank_batches(epoch, world_size, rank) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        assert drawn(batch for batches in ranks for batch in batches) == Counter(range(301))
        assert all(batch for batches in ranks for batch in batches)


def test_more_ranks_than_utterances_repeat_some():
    ranks = [BatchPlan(synthetic_cuts(3), 2, shuffle=True).rank_batches(0, 4, rank) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [1] * 4
    assert set(drawn(batch for batches in ranks for batch in batches)) == {0, 1, 2}


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_position_of_every_epoch_can_be_gone_on_from(world_size):
    cuts = synthetic_cuts(90)

    def rest(state: dict) -> list:
        plan = BatchPlan(cuts, None, shuffle=True, seed=4, max_batch_seconds=50.0, weights=[1.0] * 50 + [0.3] * 40)
        loader = SpeechDataLoader(_Echo(), plan, world_size=world_size, rank=world_size - 1)
        loader.load_state_dict(state)
        return list(loader)

    for epoch in range(3):
        whole = rest({"epoch": epoch, "batches_done": 0})
        assert len(whole) > 3
        for done in range(len(whole)):
            assert rest({"epoch": epoch, "batches_done": done}) == whole[done:]


@pytest.mark.parametrize("numbers", [(4, 8), (8, 4), (1, 3), (3, 1), (2, 5, 3)], ids=str)
def test_an_epoch_shared_by_changing_numbers_of_processes_has_every_utterance_once(numbers):
    plan, state, heard = BatchPlan(synthetic_cuts(301), 4, shuffle=True), {"epoch": 1, "batches_done": 0}, Counter()
    for world_size in numbers:
        parts = []
        for rank in range(world_size):
            loader = SpeechDataLoader(_Echo(), plan, world_size=world_size, rank=rank)
            loader.load_state_dict(state)
            last = world_size == numbers[-1]
            parts.append([batch for batch, _ in zip(loader, range(10_000 if last else 7), strict=False)])
            stopped = loader.state_dict()
        assert len({len(part) for part in parts}) == 1
        heard += Counter(index for part in parts for batch in part for index, _ in batch)
        state = {**stopped, "batches_done": len(parts[0])}
    assert heard == Counter(range(301))


class _Echo:
    """A dataset whose batches are the plan's."""

    cache = None

    def __getitem__(self, draws):
        return [tuple(draw) for draw in draws], []


def test_weights_say_how_often_an_epoch_has_an_utterance():
    weights = [1.0] * 60 + [0.25] * 40 + [2.5] * 20
    plan = BatchPlan(synthetic_cuts(120), 8, shuffle=True, weights=weights)
    epochs = [plan.batches(epoch) for epoch in range(4)]
    for batches in epochs:
        counts = drawn(batches)
        assert {counts[index] for index in range(60)} == {1}
        assert sum(counts[index] for index in range(60, 100)) == 10
        assert {counts[index] for index in range(100, 120)} == {2, 3}
    together = sum(map(drawn, epochs), Counter())
    assert {together[index] for index in range(60, 100)} == {1}
    assert {together[index] for index in range(100, 120)} == {10}
    # Augmentation is seeded by this pair, so no two hearings of an utterance are alike.
    pairs = [draw for batches in epochs for batch in batches for draw in batch]
    assert len(set(pairs)) == len(pairs)
    assert {draw.times_before for draw in pairs if draw.index == 100} == set(range(10))


def test_shards_are_read_one_after_the_other(monkeypatch):
    monkeypatch.setattr(batch_plan, "_WINDOW_UTTERANCES", 200)
    shards = [number // 50 for number in range(2_000)] + [None] * 100
    plan = BatchPlan(synthetic_cuts(2_100), 8, shuffle=True, num_buckets=5, shards=shards)
    assert drawn(plan.batches()) == Counter(range(2_100))
    positions: dict = {}
    for position, batch in enumerate(plan.batches()):
        for draw in batch:
            positions.setdefault(shards[draw.index], []).append(position)
    alone = positions.pop(None)
    spans = {shard: np.subtract(*np.quantile(places, [0.95, 0.05])) for shard, places in positions.items()}
    assert max(spans.values()) < len(plan.batches()) * 2 * 220 / 2_100  # two windows
    assert np.subtract(*np.quantile(alone, [0.95, 0.05])) > 0.7 * len(plan.batches())  # spread over the epoch
    order = sorted(positions, key=lambda shard: np.median(positions[shard]))
    assert order != sorted(order)
    assert plan.batches(0) != plan.batches(1)
