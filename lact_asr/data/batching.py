"""From corpus cuts to padded batches: reading, exact resumption, several processes, unreadable files left out.

`BatchPlan` says which utterances share a batch. Recordings are decoded by `lact_asr.audio`, not by lhotse, whose readers
may need torchaudio.
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
from lhotse.utils import fastcopy
from torch.utils.data import DataLoader, Dataset

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.data.batch_plan import DEFAULT_NUM_BUCKETS, BatchPlan, Draw, Speeds, draw_key, padding_fraction
from lact_asr.data.corpora import Problem, cut_samples, read_cut, shard_of, transcript
from lact_asr.errors import InputError

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
Transform = Callable[[np.ndarray, str], np.ndarray]

IGNORED_LABEL = -100
_CACHE_SLACK_SAMPLES = 64


def make_dataloader(
    cuts: Iterable[MonoCut],
    processor: Any,
    batch_size: int | None,
    *,
    shuffle: bool,
    seed: int = 0,
    num_buckets: int = DEFAULT_NUM_BUCKETS,
    crop_samples: int | None = None,
    max_batch_seconds: float | None = None,
    weights: Sequence[float] | None = None,
    num_workers: int = 0,
    transform: Transform | None = None,
    clean_transform: Transform | None = None,
    speeds: Speeds | None = None,
    cache_bytes: int = 0,
    world_size: int = 1,
    rank: int = 0,
) -> SpeechDataLoader:
    """Build the loader of a training (``shuffle=True``) or evaluation set.

    Batches are dicts: `input_values` float32 [B, samples] (normalised per utterance, zero padded), `attention_mask`
    bool [B, samples] (true = real), `labels` int64 [B, L] (-100 = padding), `ids` list[str], `texts` list[str]; with a
    `clean_transform` also `clean_input_values`, normalised and padded as `input_values` are.

    Args:
        cuts: `Corpus.cuts`.
        processor: has a Transformers `feature_extractor` and CTC `tokenizer`.
        batch_size, shuffle, seed, num_buckets, max_batch_seconds, weights: see `BatchPlan`.
        crop_samples: keep only the first so many samples at 16 kHz. From the start, not at random, because the
            transcript stays whole and the labels of what remains are at its start.
        num_workers: processes that read; 0 reads in this one. Results do not depend on it.
        transform: called as ``transform(samples, key)`` on float32 [samples] at 16 kHz before normalisation; it may
            change the length. The key is `lact_asr.data.batch_plan.draw_key`: a transform seeded by it is reproducible and
            yet differs between epochs.
        clean_transform: called as `transform`, in its place, for the clean view; must give equally many samples.
        speeds: of `transform`, if it changes them; see `BatchPlan`.
        cache_bytes: memory for decoded recordings (float32, so that results are exact), shared by the workers.
        world_size, rank: of the processes that share an epoch; each takes whole batches, every `world_size`-th. In
            training all take equally many steps; in evaluation ranks may differ by a batch.

    Raises:
        InputError: no cuts, or a limit on batches below 1.
    """
    cuts = [crop_cut(cut, crop_samples) for cut in cuts]
    if not cuts or (batch_size is not None and batch_size < 1):
        raise InputError(f"cannot make batches of {batch_size} from {len(cuts)} utterances: both must be at least 1")
    cache = WaveformCache([cut_samples(cut) for cut in cuts], cache_bytes) if cache_bytes else None
    shards = [shard_of(cut) for cut in cuts]
    plan = BatchPlan(cuts, batch_size, shuffle, seed, num_buckets, max_batch_seconds, weights, shards, speeds)
    dataset = SpeechDataset(cuts, processor, transform, cache, clean_transform)
    return SpeechDataLoader(dataset, plan, num_workers, world_size, rank)


def crop_cut(cut: MonoCut, crop_samples: int | None) -> MonoCut:
    """The first `crop_samples` samples (at 16 kHz) of a cut, with its whole transcript; short cuts stay as they are."""
    if crop_samples is None or cut_samples(cut) <= crop_samples:
        return cut
    return fastcopy(cut, duration=crop_samples / SAMPLE_RATE_HZ)


class WaveformCache:
    """Decoded waveforms in one block of memory that forked workers share; exact, since nothing is rounded.

    It holds the first utterances that fit into the limit and never evicts. Workers that store one utterance at once
    store the same samples, so no lock is needed.
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
    """Map-style dataset whose items are whole batches: ``dataset[draws]`` -> (batch or None, problems)."""

    def __init__(
        self,
        cuts: Sequence[MonoCut],
        processor: Any,
        transform: Transform | None = None,
        cache: WaveformCache | None = None,
        clean_transform: Transform | None = None,
    ):
        self.cuts, self.processor, self.cache = cuts, processor, cache
        self.transform, self.clean_transform = transform, clean_transform

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[Batch | None, list[Problem]]:
        """Read and pad one batch; None if none of its recordings can be read."""
        waveforms, keys, cuts, problems = [], [], [], []
        for draw in draws:
            cut = self.cuts[draw.index]
            try:
                samples = self._read(draw.index)
            except InputError as error:
                problems.append(Problem(cut.id, str(error), "unreadable audio file"))
                continue
            waveforms.append(samples)
            keys.append(draw_key(cut, draw))
            cuts.append(cut)
        return (self._collate(waveforms, keys, cuts) if cuts else None), problems

    def _read(self, index: int) -> np.ndarray:
        """float32 [samples] of one cut."""
        samples = None if self.cache is None else self.cache.get(index)
        if samples is None:
            samples = read_cut(self.cuts[index])
            if self.cache is not None:
                self.cache.put(index, samples)
        return samples

    def _collate(self, waveforms: list[np.ndarray], keys: list[str], cuts: list[MonoCut]) -> Batch:
        input_values, attention_mask = self._inputs(waveforms, keys, self.transform)
        texts = [transcript(cut) for cut in cuts]
        rows = [torch.tensor(self.processor.tokenizer(text).input_ids, dtype=torch.int64) for text in texts]
        batch = {
            "input_values": input_values,
            "attention_mask": attention_mask,
            "labels": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL),
            "ids": [cut.id for cut in cuts],
            "texts": texts,
        }
        if self.clean_transform is not None:
            batch["clean_input_values"], _ = self._inputs(waveforms, keys, self.clean_transform)
        return batch

    def _inputs(
        self, waveforms: list[np.ndarray], keys: list[str], transform: Transform | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Transformed, normalised, padded: float32 [B, samples], and the bool mask of real samples (an eighth of integers' bytes)."""
        if transform is not None:
            waveforms = [
                np.asarray(transform(samples, key), dtype=np.float32)
                for samples, key in zip(waveforms, keys, strict=True)
            ]
        inputs = self.processor.feature_extractor(
            waveforms, sampling_rate=SAMPLE_RATE_HZ, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        return inputs.input_values.float(), inputs.attention_mask.bool()


class _PlanPosition:
    """The sampler that torch's DataLoader iterates: this rank's batches of the epoch, from a position on."""

    def __init__(self, plan: BatchPlan, world_size: int, rank: int):
        self.plan, self.world_size, self.rank = plan, world_size, rank
        self.epoch = self.batches_done = 0
        self.earlier_parts: list[tuple[int, int]] = []  # of this epoch, see `BatchPlan.rank_batches`

    def go_to_epoch(self, epoch: int) -> None:
        self.epoch, self.batches_done, self.earlier_parts = epoch, 0, []

    def rank_batches(self) -> list[list[Draw]]:
        return self.plan.rank_batches(self.epoch, self.world_size, self.rank, self.earlier_parts)

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.rank_batches()[self.batches_done :])


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
            self._position.go_to_epoch(epoch)

    def __len__(self) -> int:
        """Batches of this rank in the current epoch."""
        return len(self._position.rank_batches())

    def __iter__(self) -> Iterator[Batch]:
        position = self._position
        if not self.plan.shuffle:
            position.go_to_epoch(0)
        nearest = None
        for batch, problems in self._loader:
            self._note(problems)
            if batch is None and position.world_size > 1:  # all processes must take equally many steps
                batch = nearest or self._nearest_readable(position.batches_done)
            position.batches_done += 1
            nearest = batch or nearest
            if batch is not None:
                yield batch
        if self.plan.shuffle:
            position.go_to_epoch(position.epoch + 1)

    def _nearest_readable(self, number: int) -> Batch:
        """What replaces an unreadable batch of this rank: the one before it, or else after it, as a resumed run has it too.

        Raises:
            InputError: none of this rank's batches can be read.
        """
        batches = self._position.rank_batches()
        for draws in (*reversed(batches[:number]), *batches[number + 1 :]):
            batch, problems = self.dataset[draws]
            self._note(problems)
            if batch is not None:
                return batch
        raise InputError(f"None of the {len(batches):,} batches of this process can be read.")

    @property
    def batches_left(self) -> int:
        """Batches of this rank that the next iteration gives."""
        return len(self) - self._position.batches_done

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this rank in the whole of the current epoch, whatever is done of it already."""
        position = self._position
        return len(self.plan.rank_batches(position.epoch, position.world_size, position.rank))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: the epoch, and the batches of it that each process was handed. Plain values."""
        position = self._position
        return {
            "epoch": position.epoch,
            "batches_done": position.batches_done,
            "processes": position.world_size,
            "earlier_parts": [list(part) for part in position.earlier_parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, by whatever number of processes; the next iteration gives the rest of that epoch."""
        position, done = self._position, int(state["batches_done"])
        position.go_to_epoch(int(state["epoch"]))
        position.earlier_parts = [(int(processes), int(part)) for processes, part in state.get("earlier_parts", [])]
        processes = state.get("processes") or position.world_size
        if processes != position.world_size:
            position.earlier_parts.append((int(processes), done))
        else:
            position.batches_done = done

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
