"""On which utterances a CTC model can be trained: their transcripts are spelt by its vocabulary and fit into their frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from lhotse import CutSet, MonoCut
from tqdm import tqdm

from lact_asr.audio import MIN_SAMPLES
from lact_asr.data.corpora import PROGRESS_BAR_FROM, Corpus, cut_samples, transcript
from lact_asr.data.corpus_listings import Problem
from lact_asr.errors import InputError


def drop_unfit(
    corpus: Corpus,
    frame_lengths: Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Any,
    crop_samples: int | None = None,
    max_audio_seconds: float | None = None,
) -> Corpus:
    """Split off the utterances on which a CTC model cannot be trained, and name them as problems.

    CTC (Graves et al. 2006) needs a frame for each label and a blank between two equal ones: frames >= labels +
    adjacent repeats.

    Args:
        corpus: what `load_corpus` returned; unchanged.
        frame_lengths: the model's map from samples [N] int64 to frames [N].
        tokenizer: the CTC tokenizer; labels are ``tokenizer(text).input_ids``.
        crop_samples: length to which training cuts the audio (transcripts stay whole), if it does.
        max_audio_seconds: longer utterances are left out.

    Raises:
        InputError: nothing remains.
    """
    cuts = list(corpus.cuts)
    unfit = find_unfit(cuts, frame_lengths, tokenizer, crop_samples, max_audio_seconds)
    kept = [index for index, problem in enumerate(unfit) if problem is None]
    problems = [*corpus.problems, *(problem for problem in unfit if problem is not None)]
    if not kept:
        raise InputError(f"no utterance of {corpus.name} can be used: {problems[-1].sentence}")
    weights = None if corpus.weights is None else [corpus.weights[index] for index in kept]
    return Corpus(corpus.name, CutSet.from_cuts(cuts[index] for index in kept), problems, weights)


def find_unfit(
    cuts: list[MonoCut],
    frame_lengths: Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Any,
    crop_samples: int | None = None,
    max_audio_seconds: float | None = None,
) -> list[Problem | None]:
    """Why each utterance cannot be trained on, None where it can; arguments are those of `drop_unfit`."""
    samples = torch.tensor([cut_samples(cut) for cut in cuts], dtype=torch.int64)
    cropped = samples if crop_samples is None else samples.clamp(max=crop_samples)
    frames = frame_lengths(cropped.clamp(min=MIN_SAMPLES)).tolist()
    bar = tqdm(cuts, "fitting transcripts", unit=" utterances", disable=len(cuts) < PROGRESS_BAR_FROM, leave=False)
    spelling = _Spelling(tokenizer)
    reasons = [
        _reason_of_length(cut, num_samples, max_audio_seconds) or spelling.problem(transcript(cut), num_frames)
        for cut, num_samples, num_frames in zip(bar, samples.tolist(), frames, strict=True)
    ]
    return [
        None if reason is None else Problem(cut.id, f"{cut.id}: {reason[1]}", reason[0])
        for cut, reason in zip(cuts, reasons, strict=True)
    ]


def frames_needed(labels: Sequence[int]) -> int:
    """Frames that CTC needs at least for a label sequence: its length plus the number of adjacent equal labels."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


def _reason_of_length(cut: MonoCut, num_samples: int, max_audio_seconds: float | None) -> tuple[str, str] | None:
    """(kind, sentence) if an utterance is too short or too long to be trained on, else None."""
    if num_samples < MIN_SAMPLES:
        return (
            "shorter than one frame",
            f"{num_samples} samples at 16 kHz are fewer than the {MIN_SAMPLES} of one frame",
        )
    if max_audio_seconds is not None and cut.duration > max_audio_seconds:
        return (
            f"longer than {max_audio_seconds:g} s",
            f"{cut.duration:.2f} s are more than the limit of {max_audio_seconds:g} s",
        )
    return None


class _Spelling:
    """Transcripts as labels. The tokenizer takes half a millisecond for one, minutes for a corpus, and is asked where it matters."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}  # character -> whether it is one label by itself

    def problem(self, text: str, num_frames: int) -> tuple[str, str] | None:
        """(kind, sentence) if a transcript cannot be spelt or does not fit into its frames, else None."""
        # A label a character, and a blank between any two of them, is the most that it can need.
        if 2 * len(text) <= num_frames and all(map(self._is_known, set(text))):
            return None
        labels = self._tokenizer(text).input_ids
        if self._tokenizer.unk_token_id in labels:
            return "characters outside of the vocabulary", f"the vocabulary cannot spell {text!r}"
        if num_frames < frames_needed(labels):
            return (
                "transcript longer than its frames",
                f"{num_frames} frames cannot hold {len(labels)} labels, which need {frames_needed(labels)}",
            )
        return None

    def _is_known(self, character: str) -> bool:
        if character not in self._known:
            labels = self._tokenizer(character).input_ids
            self._known[character] = len(labels) == 1 and labels[0] != self._tokenizer.unk_token_id
        return self._known[character]
