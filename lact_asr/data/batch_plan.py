"""Which utterances share a batch: duration buckets, several corpora by weight, several processes, shards in turn.

lhotse's `DynamicBucketingSampler` decides it. Its whole epoch is drawn up front into lists of `Draw`s, which makes the
number of batches known, lets processes take every n-th batch, and lets an interrupted epoch go on at the very batch
where it stopped.
"""

from __future__ import annotations

import functools
import hashlib
import random
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from lhotse import MonoCut
from lhotse.dataset.sampling import DynamicBucketingSampler
from lhotse.dataset.sampling.base import SamplingConstraint, TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint, estimate_duration_buckets

from lact_asr.data.corpora import cut_samples

DEFAULT_NUM_BUCKETS = 30
_MIN_BATCHES_PER_BUCKET = 2
# So many utterances (about 70 h of LibriSpeech) are shuffled and batched at a time.
_WINDOW_UTTERANCES = 20_000


class Draw(NamedTuple):
    """One utterance of a batch: its index, and how often it was drawn before (in all epochs)."""

    index: int
    times_before: int


def draw_key(cut: MonoCut, draw: Draw) -> str:
    """What augmentation is seeded by: the utterance's id, with ``#N`` where it was drawn N times before."""
    return f"{cut.id}#{draw.times_before}" if draw.times_before else cut.id


class Speeds(Protocol):
    """What changes the speed of utterances: `lact_asr.data.augmentation.WaveformAugmentation`."""

    speed_factors: Sequence[float]

    def speed(self, key: str) -> float:
        """Of one utterance, by its `draw_key`."""


@dataclass
class _Candidate:
    """What lhotse's sampler needs of a cut; the cuts themselves it would change."""

    draw: Draw
    duration: float


class BatchPlan:
    """The batches of each epoch, fixed by the arguments.

    Args:
        cuts: the utterances.
        batch_size: most utterances in a batch; None: as many as `max_batch_seconds` allows.
        shuffle: draw batches at random from duration buckets, differently each epoch; without it, utterances come
            longest first, all in one order.
        seed: decides every random choice, together with the epoch.
        num_buckets: duration buckets; fewer are used where a bucket would hold less than two batches.
        max_batch_seconds: most seconds in a padded batch (utterances × longest). A longer utterance is a batch by itself.
        weights: how often an epoch draws each utterance; None: once. With a weight of 0.5, two epochs draw each
            utterance of that weight once, with 2 each epoch draws it twice.
        shards: the file that holds each utterance, None where it is a file by itself. Utterances of a shard are drawn
            near each other, so that the shards are read one after the other.
        speeds: how fast each utterance will be played, so that batches are of what will be as long; None: as recorded.
    """

    def __init__(
        self,
        cuts: Sequence[MonoCut],
        batch_size: int | None,
        shuffle: bool,
        seed: int = 0,
        num_buckets: int = DEFAULT_NUM_BUCKETS,
        max_batch_seconds: float | None = None,
        weights: Sequence[float] | None = None,
        shards: Sequence[Hashable | None] | None = None,
        speeds: Speeds | None = None,
    ) -> None:
        self.cuts, self.shuffle, self.seed = cuts, shuffle, seed
        self.batch_size, self.max_batch_seconds = batch_size, max_batch_seconds
        self.speeds = speeds if speeds is not None and set(speeds.speed_factors) != {1.0} else None
        self.shards = [None] * len(cuts) if shards is None else shards
        self._by_weight: dict[float, list[int]] = {}
        for index, weight in enumerate([1.0] * len(cuts) if weights is None else weights):
            self._by_weight.setdefault(weight, []).append(index)
        mean_seconds = sum(cut.duration for cut in cuts) / len(cuts)
        num_buckets = min(num_buckets, len(cuts) // (_MIN_BATCHES_PER_BUCKET * self._size_for(mean_seconds)))
        starts = estimate_duration_buckets(cuts, num_buckets) if num_buckets > 1 else []
        slowest = 1.0 if self.speeds is None else min(1.0, *self.speeds.speed_factors)
        self._bucket_ends = [*starts, max(cut.duration for cut in cuts) / slowest]
        self._drawn: tuple[int, list[list[Draw]]] | None = None

    def batches(self, epoch: int = 0) -> list[list[Draw]]:
        """All batches of an epoch."""
        if not self.shuffle:
            epoch = 0
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self._shuffled(epoch) if self.shuffle else self._by_length(self._candidates(0)))
        return self._drawn[1]

    def rank_batches(
        self, epoch: int, world_size: int, rank: int, earlier_parts: Iterable[tuple[int, int]] = ()
    ) -> list[list[Draw]]:
        """The batches of one of several processes: every `world_size`-th.

        In training all processes must take equally many steps; batches are halved where their number does not divide.

        Args:
            epoch, world_size, rank: which epoch, how many processes, which of them.
            earlier_parts: what of this epoch is done already by other numbers of processes: (processes, batches of each).
        """
        batches = self.batches(epoch)
        for processes, done in earlier_parts:
            batches = _divisible(batches, processes)[processes * done :]
        return (_divisible(batches, world_size) if self.shuffle else batches)[rank::world_size]

    @functools.cached_property
    def digest(self) -> str:
        """Equal for plans with equal batches: of utterances, weights and all settings; shards may be called otherwise."""
        numbers: dict[Hashable | None, int | None] = {None: None}
        shards = [str(numbers.setdefault(shard, len(numbers))) for shard in self.shards]
        facts = (
            [(cut.id, cut_samples(cut)) for cut in self.cuts], sorted(self._by_weight.items()), self.batch_size,
            self.max_batch_seconds, self._bucket_ends, self.speeds and tuple(self.speeds.speed_factors), self.seed, self.shuffle, shards,
        )  # fmt: skip
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def sample_lengths(self, epoch: int = 0) -> list[list[int]]:
        """Samples at 16 kHz of every row of every batch, without reading any audio."""
        return [
            [round(cut_samples(self.cuts[draw.index]) / self._speed(draw)) for draw in batch]
            for batch in self.batches(epoch)
        ]

    def _speed(self, draw: Draw) -> float:
        return 1.0 if self.speeds is None else self.speeds.speed(draw_key(self.cuts[draw.index], draw))

    def _size_for(self, longest_seconds: float) -> int:
        """Utterances in a full batch whose longest lasts so many seconds."""
        sizes = [self.batch_size or len(self.cuts)]
        if self.max_batch_seconds is not None:
            sizes.append(int(self.max_batch_seconds / longest_seconds))
        return max(1, min(sizes))

    def _candidates(self, epoch: int) -> list[_Candidate]:
        """What an epoch draws."""
        drawn = (draw for weight, members in self._by_weight.items() for draw in self._draws(members, weight, epoch))
        return [_Candidate(draw, self.cuts[draw.index].duration / self._speed(draw)) for draw in drawn]

    def _draws(self, members: list[int], weight: float, epoch: int) -> Iterator[Draw]:
        """The epoch's part of an endless sequence of permutations of utterances of one weight."""
        count = max(1, round(weight * len(members)))
        first_pass, start = divmod(epoch * count, len(members))
        last_pass = ((epoch + 1) * count - 1) // len(members)
        sequence = (
            Draw(index, number)
            for number in range(first_pass, last_pass + 1)
            for index in random.Random(f"{self.seed}/{weight}/{number}").sample(members, len(members))
        )
        return islice(sequence, start, start + count)

    def _shuffled(self, epoch: int) -> list[list[Draw]]:
        generator = random.Random(f"{self.seed}/{epoch}")
        candidates = self._candidates(epoch)
        place = {shard: generator.random() for shard in dict.fromkeys(self.shards) if shard is not None}
        shards = (self.shards[candidate.draw.index] for candidate in candidates)
        places = [generator.random() if shard is None else place[shard] for shard in shards]
        candidates = [candidates[number] for number in sorted(range(len(candidates)), key=places.__getitem__)]
        batches: list[list[Draw]] = []
        leftovers: list[_Candidate] = []
        for start in range(0, len(candidates), _WINDOW_UTTERANCES):
            window = leftovers + candidates[start : start + _WINDOW_UTTERANCES]
            full, leftovers = self._full_batches(window, seed=generator.randrange(2**31))
            if start + _WINDOW_UTTERANCES >= len(candidates):
                full += self._by_length(leftovers)
            generator.shuffle(full)
            batches += full
        return batches

    def _full_batches(self, candidates: list[_Candidate], seed: int) -> tuple[list[list[Draw]], list[_Candidate]]:
        """Full batches, and what every bucket has left: batches of so few utterances that each would weigh more."""
        sizes = [self._size_for(end) for end in self._bucket_ends]
        constraint = FixedBucketBatchSizeConstraint(self._bucket_ends, sizes)
        full: list[list[Draw]] = []
        leftovers: list[_Candidate] = []
        for batch in self._sample(candidates, constraint, self._bucket_ends[:-1], seed):
            if len(batch) == sizes[bisect_left(self._bucket_ends, batch[0].duration)]:
                full.append([candidate.draw for candidate in batch])
            else:
                leftovers += batch
        return full, leftovers

    def _by_length(self, candidates: Iterable[_Candidate]) -> list[list[Draw]]:
        """Longest first: least padding, and a lack of memory shows at once."""
        candidates = sorted(candidates, key=lambda candidate: -candidate.duration)
        constraint = TimeConstraint(self.max_batch_seconds, self.batch_size or len(self.cuts))
        batches = self._sample(candidates, constraint, [], seed=None) if candidates else []
        return [[candidate.draw for candidate in batch] for batch in batches]

    def _sample(
        self, candidates: list[_Candidate], constraint: SamplingConstraint, bucket_starts: list[float], seed: int | None
    ) -> list[list[_Candidate]]:
        """lhotse's batches; in the order of the candidates without a seed."""
        sampler = DynamicBucketingSampler(
            candidates,
            constraint=constraint,
            duration_bins=bucket_starts,
            shuffle=seed is not None,
            seed=seed or 0,
            buffer_size=len(candidates),
            # lhotse 1.33 ends an epoch early, losing partial batches, where this is off.
            sync_buckets=True,
            world_size=1,
            rank=0,
        )
        return [list(batch) for batch in sampler]


def padding_fraction(batches: Iterable[Sequence[int]]) -> float:
    """Padded samples over all samples of padded batches, from the lengths of each batch's rows."""
    padded = real = 0
    for lengths in batches:
        padded += max(lengths) * len(lengths)
        real += sum(lengths)
    return 1 - real / padded if padded else 0.0


def _divisible(batches: list[list[Draw]], world_size: int) -> list[list[Draw]]:
    """Halve the largest batches until their number is a multiple of the processes; nothing is lost or repeated.

    Only where fewer utterances than processes are left to share are the first batches repeated.
    """
    batches = list(batches)
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        half = len(batches[largest]) // 2
        if half == 0:
            missing = -len(batches) % world_size
            return batches + [batches[number % len(batches)] for number in range(missing)]
        batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    return batches
