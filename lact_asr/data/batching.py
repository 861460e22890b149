"""From corpus cuts to padded batches: duration buckets, exact resumption, several processes, unreadable files left out.

lhotse's `DynamicBucketingSampler` decides which utterances share a batch. Its whole epoch is drawn up front into a
plan (lists of indices), which makes the number of batches known, lets processes take every n-th batch, and lets an
interrupted epoch go on at the very batch where it stopped. Recordings are decoded by `lact_asr.audio`, not by lhotse,
whose readers may need torchaudio.
"""

from __future__ import annotations

import logging
import mmap
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut
from lhotse.dataset.sampling import DynamicBucketingSampler
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from lhotse.utils import fastcopy
from torch.utils.data import DataLoader, Dataset

from lact_asr.audio import SAMPLE_RATE_HZ, read_audio
from lact_asr.data.corpora import Problem, cut_samples, transcript
from lact_asr.errors import InputError

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
Transform = Callable[[np.ndarray, str], np.ndarray]

DEFAULT_NUM_BUCKETS = 30
IGNORED_LABEL = -100
_MIN_BATCHES_PER_BUCKET = 2
_BUCKET_BUFFER_CUTS = 20_000
_CACHE_SLACK_SAMPLES = 64


def make_dataloader(
    cuts: Iterable[MonoCut],
    processor: Any,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    num_buckets: int = DEFAULT_NUM_BUCKETS,
    crop_samples: int | None = None,
    max_batch_seconds: float | None = None,
    num_workers: int = 0,
    transform: Transform | None = None,
    cache_bytes: int = 0,
    world_size: int = 1,
    rank: int = 0,
) -> SpeechDataLoader:
    """Build the loader of a training (``shuffle=True``) or evaluation set.

    Batches are dicts: `input_values` float32 [B, samples] (normalised per utterance, zero padded), `attention_mask`
    int64 [B, samples] (1 = real), `labels` int64 [B, L] (-100 = padding), `ids` list[str], `texts` list[str].

    Args:
        cuts: `Corpus.cuts`.
        processor: has a Transformers `feature_extractor` and CTC `tokenizer`.
        batch_size: most utterances in a batch.
        shuffle: draw batches at random from duration buckets, differently each epoch; without it, utterances come
            longest first.
        seed: decides every random choice, together with the epoch.
        num_buckets: duration buckets; fewer are used where a bucket would hold less than two batches.
        crop_samples: keep only the first so many samples at 16 kHz. From the start, not at random, because the
            transcript stays whole and the labels of what remains are at its start.
        max_batch_seconds: most seconds in a padded batch (utterances × longest), give or take the spread of a bucket.
        num_workers: processes that read; 0 reads in this one. Results do not depend on it.
        transform: called as ``transform(samples, key)`` on float32 [samples] at 16 kHz before normalisation; it may
            change the length a little (padding is then planned from the original lengths). The key is the utterance id, with ``#epochN`` added from the second training epoch on: a
            transform seeded by it is reproducible and yet differs between epochs.
        cache_bytes: memory for decoded recordings (float32, so that results are exact), shared by the workers.
        world_size, rank: of the processes that share an epoch; each takes whole batches, every `world_size`-th. In
        training the plan is filled up with its
            first batches so that all take equally many steps; in evaluation nothing is repeated, so ranks may differ
            by a batch.

    Raises:
        InputError: no cuts, or a batch size below 1.
    """
    cuts = [crop_cut(cut, crop_samples) for cut in cuts]
    if not cuts or batch_size < 1:
        raise InputError(f"cannot make batches of {batch_size} from {len(cuts)} utterances: both must be at least 1")
    cache = WaveformCache([cut_samples(cut) for cut in cuts], cache_bytes) if cache_bytes else None
    plan = BatchPlan(cuts, batch_size, shuffle, seed, num_buckets, max_batch_seconds)
    return SpeechDataLoader(SpeechDataset(cuts, processor, transform, cache), plan, num_workers, world_size, rank)


def crop_cut(cut: MonoCut, crop_samples: int | None) -> MonoCut:
    """The first `crop_samples` samples (at 16 kHz) of a cut, with its whole transcript; short cuts stay as they are."""
    if crop_samples is None or cut_samples(cut) <= crop_samples:
        return cut
    return fastcopy(cut, duration=crop_samples / SAMPLE_RATE_HZ)


def padding_fraction(batches: Iterable[Sequence[int]]) -> float:
    """Padded samples over all samples of padded batches, from the lengths of each batch's rows."""
    padded = real = 0
    for lengths in batches:
        padded += max(lengths) * len(lengths)
        real += sum(lengths)
    return 1 - real / padded if padded else 0.0


class BatchPlan:
    """Which utterances share a batch, epoch by epoch: lists of indices into the cuts, fixed by the arguments."""

    def __init__(
        self,
        cuts: Sequence[MonoCut],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        num_buckets: int = DEFAULT_NUM_BUCKETS,
        max_batch_seconds: float | None = None,
    ):
        self.cuts, self.batch_size, self.shuffle, self.seed = cuts, batch_size, shuffle, seed
        self.max_batch_seconds = max_batch_seconds
        self._index = {cut.id: index for index, cut in enumerate(cuts)}
        num_buckets = min(num_buckets, len(cuts) // (_MIN_BATCHES_PER_BUCKET * batch_size))
        self._bucket_starts = estimate_duration_buckets(cuts, num_buckets) if num_buckets > 1 else []
        self._drawn: tuple[int, list[list[int]]] | None = None

    def batches(self, epoch: int = 0) -> list[list[int]]:
        """All batches of an epoch; each utterance is in exactly one."""
        if not self.shuffle:
            epoch = 0
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self._shuffled(epoch) if self.shuffle else self._by_length(self.cuts))
        return self._drawn[1]

    def sample_lengths(self, epoch: int = 0) -> list[list[int]]:
        """Samples at 16 kHz of every row of every batch, without reading any audio."""
        return [[cut_samples(self.cuts[index]) for index in batch] for batch in self.batches(epoch)]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        generator = random.Random(f"{self.seed}/{epoch}")
        # lhotse shuffles within a buffer; corpora list speaker after speaker, so the order is random before that too.
        cuts = generator.sample(self.cuts, len(self.cuts))
        batches = self._sample(cuts, self._bucket_starts, shuffle=True, seed=generator.randrange(2**31))
        if self.max_batch_seconds is None:
            # Every bucket ends in a partial batch, whose few utterances would weigh more: these are batched together.
            leftovers = [self.cuts[index] for batch in batches if len(batch) < self.batch_size for index in batch]
            batches = [batch for batch in batches if len(batch) == self.batch_size] + self._by_length(leftovers)
        generator.shuffle(batches)
        return batches

    def _by_length(self, cuts: Sequence[MonoCut]) -> list[list[int]]:
        """Longest first: least padding, and a lack of memory shows at once."""
        return self._sample(sorted(cuts, key=lambda cut: -cut.duration), [], shuffle=False, seed=0) if cuts else []

    def _sample(self, cuts: Sequence[MonoCut], bucket_starts: list[float], shuffle: bool, seed: int) -> list[list[int]]:
        sampler = DynamicBucketingSampler(
            cuts,
            constraint=TimeConstraint(max_duration=self.max_batch_seconds, max_cuts=self.batch_size),
            duration_bins=bucket_starts,
            shuffle=shuffle,
            seed=seed,
            buffer_size=_BUCKET_BUFFER_CUTS,
            # lhotse 1.33 ends an epoch early, losing partial batches, where this is off.
            sync_buckets=True,
            world_size=1,
            rank=0,
        )
        return [[self._index[cut.id] for cut in batch] for batch in sampler]


class WaveformCache:
    """Decoded waveforms in one block of memory that forked workers share; exact, since nothing is rounded.

    It holds the first utterances that fit into the limit and never evicts. An utterance is read by one worker an
    epoch, and workers wait for each other between epochs, so no lock is needed.
    """

    def __init__(self, lengths_samples: Sequence[int], limit_bytes: int):
        ends = np.cumsum([length + _CACHE_SLACK_SAMPLES for length in lengths_samples], dtype=np.int64)
        self.num_slots = int(np.searchsorted(ends * 4, limit_bytes, side="right"))
        self._ends = ends[: self.num_slots]
        # Anonymous maps, not /dev/shm, which containers often limit to 64 MB.
        num_samples = int(self._ends[-1]) if self.num_slots else 1
        self._samples = np.frombuffer(mmap.mmap(-1, 4 * num_samples), dtype=np.float32)
        self._lengths = np.frombuffer(mmap.mmap(-1, 8 * max(1, self.num_slots)), dtype=np.int64)

    def get(self, index: int) -> np.ndarray | None:
        """A copy of utterance `index`, float32 [samples], or None where it is not held."""
        if index >= self.num_slots or self._lengths[index] == 0:
            return None
        start = self._start(index)
        return self._samples[start : start + self._lengths[index]].copy()

    def put(self, index: int, samples: np.ndarray) -> None:
        """Keep float32 [samples] of utterance `index` if there is room for it."""
        if index < self.num_slots and self._start(index) + len(samples) <= self._ends[index]:
            self._samples[self._start(index) : self._start(index) + len(samples)] = samples
            self._lengths[index] = len(samples)

    def _start(self, index: int) -> int:
        return int(self._ends[index - 1]) if index else 0


class SpeechDataset(Dataset):
    """Map-style dataset whose items are whole batches: ``dataset[epoch, indices]`` -> (batch or None, problems)."""

    def __init__(
        self,
        cuts: Sequence[MonoCut],
        processor: Any,
        transform: Transform | None = None,
        cache: WaveformCache | None = None,
    ):
        self.cuts, self.processor, self.transform, self.cache = cuts, processor, transform, cache

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> tuple[Batch | None, list[Problem]]:
        """Read and pad one batch; None if none of its recordings can be read."""
        epoch, indices = key
        waveforms, cuts, problems = [], [], []
        for index in indices:
            cut = self.cuts[index]
            try:
                samples = self._read(index)
            except InputError as error:
                problems.append(Problem(cut.id, str(error), "unreadable audio file"))
                continue
            waveforms.append(samples if self.transform is None else self._transformed(samples, cut.id, epoch))
            cuts.append(cut)
        return (self._collate(waveforms, cuts) if cuts else None), problems

    def _read(self, index: int) -> np.ndarray:
        """float32 [samples] of one cut."""
        samples = None if self.cache is None else self.cache.get(index)
        if samples is None:
            cut = self.cuts[index]
            duration = None if cut.end >= cut.recording.duration else cut.duration
            samples = read_audio(cut.recording.sources[0].source, cut.start, duration)
            if self.cache is not None:
                self.cache.put(index, samples)
        return samples

    def _transformed(self, samples: np.ndarray, utterance_id: str, epoch: int) -> np.ndarray:
        key = f"{utterance_id}#epoch{epoch}" if epoch else utterance_id
        return np.asarray(self.transform(samples, key), dtype=np.float32)

    def _collate(self, waveforms: list[np.ndarray], cuts: list[MonoCut]) -> Batch:
        inputs = self.processor.feature_extractor(
            waveforms, sampling_rate=SAMPLE_RATE_HZ, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        texts = [transcript(cut) for cut in cuts]
        rows = [torch.tensor(self.processor.tokenizer(text).input_ids, dtype=torch.int64) for text in texts]
        return {
            "input_values": inputs.input_values.float(),
            "attention_mask": inputs.attention_mask.to(torch.int64),
            "labels": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL),
            "ids": [cut.id for cut in cuts],
            "texts": texts,
        }


class _PlanPosition:
    """The sampler that torch's DataLoader iterates: this rank's batches of the epoch, from a position on."""

    def __init__(self, plan: BatchPlan, world_size: int, rank: int):
        self.plan, self.world_size, self.rank = plan, world_size, rank
        self.epoch = self.batches_done = 0

    def rank_batches(self) -> list[list[int]]:
        batches = self.plan.batches(self.epoch)
        if self.plan.shuffle:
            missing = -len(batches) % self.world_size
            batches = batches + [batches[number % len(batches)] for number in range(missing)]
        return batches[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return ((self.epoch, batch) for batch in self.rank_batches()[self.batches_done :])


class SpeechDataLoader:
    """Iterates over the batches of an epoch; in training it knows its exact position and goes on to the next epoch.

    Not to be passed through `accelerate.prepare`, which would split batches again: give `world_size` and `rank` and
    move batches to the device.

    Attributes:
        plan: the `BatchPlan`.
        problems: utterance id -> `Problem` of recordings that could not be read so far (each is logged once).
    """

    def __init__(
        self, dataset: SpeechDataset, plan: BatchPlan, num_workers: int = 0, world_size: int = 1, rank: int = 0
    ):
        self.dataset, self.plan = dataset, plan
        self.problems: dict[str, Problem] = {}
        self._position = _PlanPosition(plan, world_size, rank)
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._position,
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_start_worker,
            generator=torch.Generator().manual_seed(plan.seed),
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Only forked workers share the cache's memory.
            multiprocessing_context="fork" if num_workers and dataset.cache is not None else None,
        )

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is in."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; within the current epoch the position is kept (as after a resumption)."""
        if epoch != self._position.epoch:
            self._position.epoch, self._position.batches_done = epoch, 0

    def __len__(self) -> int:
        """Batches of this rank in the current epoch."""
        return len(self._position.rank_batches())

    def __iter__(self) -> Iterator[Batch]:
        position = self._position
        if not self.plan.shuffle:
            position.epoch = position.batches_done = 0
        owed, previous = 0, None
        for batch, problems in self._loader:
            self._note(problems)
            position.batches_done += 1
            owed += 1
            previous = batch or previous
            # Ranks must take equally many steps: with several, the batch before (or after) replaces an unreadable one.
            while owed and previous is not None and (batch is not None or position.world_size > 1):
                owed -= 1
                yield previous
            owed = owed if position.world_size > 1 else 0
        if self.plan.shuffle:
            position.epoch, position.batches_done = position.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: the epoch, and the batches of it that were handed out. Plain integers."""
        return {"epoch": self._position.epoch, "batches_done": self._position.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken; the next iteration gives the rest of that epoch."""
        self._position.epoch, self._position.batches_done = int(state["epoch"]), int(state["batches_done"])

    def padding_fraction(self) -> float:
        """Padded samples over all samples in the current epoch, all ranks together, from durations alone."""
        return padding_fraction(self.plan.sample_lengths(self.epoch))

    def _note(self, problems: list[Problem]) -> None:
        for problem in problems:
            if problem.name not in self.problems:
                self.problems[problem.name] = problem
                logger.warning("left out: %s", problem.sentence)


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker_id: int) -> None:
    """Seed Python's and numpy's global generators in a worker from torch's seed, which follows from the loader's."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        _leave_stopping_to_the_main_process()


def _leave_stopping_to_the_main_process() -> None:
    """Of SIGTERM and SIGINT obey only those of the main process.

    Batch systems and terminals send them to workers, too, and a worker that dies ends the main process before it can save.
    """
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)

    def wait_for_the_main_process() -> None:
        while signal.sigwaitinfo(stop_signals).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait_for_the_main_process, daemon=True).start()
