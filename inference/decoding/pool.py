"""Decoding in processes of its own, while the model goes on to the next recordings."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from lact_asr.errors import InputError
from lact_asr.inference.decoding.alphabet import LogProbs
from lact_asr.inference.decoding.transcripts import Decoder, Transcript

_decoder: Decoder | None = None  # a worker's own


class DecodingPool:
    """Decoders in several processes behind the interface of one. Transcripts do not depend on how many there are.

    Use as a context manager.
    """

    def __init__(self, make_decoder: Callable[[], Decoder], processes: int):
        """Name the processes' work; they start with the first utterance.

        Args:
            make_decoder: called once in each process, so it is pickled: a function of a module, or `functools.partial` of one.
            processes: how many.
        """
        # Forked processes can hang in the thread pools that PyTorch had started before.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(processes, context, initializer=_set_up, initargs=(make_decoder,))

    def __enter__(self) -> DecodingPool:
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, log_probs: LogProbs, length: int | None = None) -> Callable[[], Transcript]:
        """Begin to decode one utterance as `Decoder.decode` does.

        Returns:
            A function that waits for the transcript; it raises `InputError` where a process was killed.
        """
        log_probs = log_probs[:length]
        if isinstance(log_probs, torch.Tensor):
            log_probs = log_probs.detach().float().cpu().numpy()
        try:
            future = self._pool.submit(_decode, log_probs)
        except BrokenProcessPool as error:
            raise _killed() from error
        return lambda: _result(future)

    def decode(self, log_probs: LogProbs, length: int | None = None) -> Transcript:
        """See `Decoder`."""
        return self.submit(log_probs, length)()

    def decode_batch(self, log_probs: LogProbs, lengths: Sequence[int] | torch.Tensor) -> list[Transcript]:
        """See `Decoder`; the utterances are decoded side by side."""
        waiting = [self.submit(row, int(length)) for row, length in zip(log_probs, lengths, strict=True)]
        return [transcript() for transcript in waiting]


def _set_up(make_decoder: Callable[[], Decoder]) -> None:
    global _decoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the others
    torch.set_num_threads(1)
    _decoder = make_decoder()


def _decode(log_probs: LogProbs) -> Transcript:
    return _decoder.decode(log_probs)


def _result(future: Future[Transcript]) -> Transcript:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _killed() from error


def _killed() -> InputError:
    return InputError(
        "A decoding process was killed, perhaps for want of memory: each holds its own language model. "
        "Start again with fewer --decoding_processes; --resume goes on with a results file."
    )
