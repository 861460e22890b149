"""Decoding in processes of its own: the same transcripts, in order, and a sentence where a process is killed."""

import functools
import os
import signal

import pytest
import torch

from lact_asr.errors import InputError
from lact_asr.inference.decoding import DecodingPool, GreedyDecoder
from lact_asr.text import build_vocabulary

VOCABULARY = build_vocabulary()


@pytest.fixture(scope="module")
def pool():
    with DecodingPool(functools.partial(GreedyDecoder, VOCABULARY, 0), processes=2) as pool:
        yield pool


def test_transcripts_are_those_of_the_decoder_itself(pool):
    log_probs = torch.randn(6, 40, len(VOCABULARY), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lengths = [40, 3, 0, 25, 40, 7]
    expected = GreedyDecoder(VOCABULARY, 0).decode_batch(log_probs, lengths)
    assert pool.decode_batch(log_probs, lengths) == expected
    assert pool.decode(log_probs[3], 25) == expected[3]
    assert len({transcript.text for transcript in expected}) > 3


def test_errors_of_the_decoder_come_through(pool):
    with pytest.raises(ValueError, match="NaN"):
        pool.decode(torch.full((4, len(VOCABULARY)), torch.nan))


def decode_many(pool, count=1000):
    for _ in range(count):  # what was under way may still be answered
        pool.decode(torch.zeros(4, len(VOCABULARY)))


def test_a_killed_process_gives_a_sentence():
    with DecodingPool(functools.partial(GreedyDecoder, VOCABULARY, 0), processes=1) as pool:
        decode_many(pool, 1)
        (worker,) = pool._pool._processes
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(InputError, match="was killed"):
            decode_many(pool)
