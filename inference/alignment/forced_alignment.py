"""When each word and character of a known transcript was said: CTC forced alignment.

The most likely CTC path that spells the transcript says which frames each character takes (`lact_asr.inference.alignment.ctc_paths.viterbi_alignment`).
"""

from __future__ import annotations

import numpy as np
import torch

from lact_asr.errors import InputError
from lact_asr.inference.alignment.ctc_paths import viterbi_alignment
from lact_asr.inference.alignment.word_times import TimedTranscript
from lact_asr.inference.decoding import CTCAlphabet, LogProbs, TimedWord
from lact_asr.inference.decoding.alphabet import in_case_of
from lact_asr.inference.decoding.confidence import with_confidence
from lact_asr.inference.recogniser import Recogniser
from lact_asr.sample_rate import SAMPLE_RATE_HZ

BLANK = 0  # its column among those of `CTCAlphabet.prepare`


def align_text(
    log_probs: LogProbs, text: str, alphabet: CTCAlphabet
) -> tuple[tuple[TimedWord, ...], tuple[TimedWord, ...]]:
    """Find the frames of a transcript's words and characters.

    Args:
        log_probs: [T, V] log-probabilities or logits.
        text: words with single spaces, in the vocabulary's characters.
        alphabet: what the columns of `log_probs` mean.

    Returns:
        The words and their characters, both with the confidences of `lact_asr.inference.decoding.confidence`.

    Raises:
        InputError: no text, a character that the vocabulary lacks, too few frames, or `log_probs` that are not finite.
    """
    if not text:
        raise InputError("there is no transcript to align")
    if missing := sorted(set(text) - set("".join(alphabet.labels)) - {" "}):
        raise InputError(f"the model cannot spell {' '.join(missing)} in the transcript")
    try:
        frames = alphabet.prepare(log_probs, None)
        labels = torch.tensor(alphabet.spell(text))
        spans = character_spans(viterbi_alignment(torch.from_numpy(frames), labels, BLANK).tolist())
    except ValueError as error:
        raise InputError(f"the transcript cannot be aligned: {error}") from None
    spelled = [(alphabet.labels[label], *span) for label, span in zip(labels.tolist(), spans, strict=True)]
    characters = [entry for entry in spelled if entry[0] != " "]
    return with_confidence(alphabet, frames, _words(text, characters)), with_confidence(alphabet, frames, characters)


def align_recording(
    id: str, samples: np.ndarray, text: str, recogniser: Recogniser, characters: bool = False
) -> TimedTranscript:
    """Words of a transcript, and if wanted their characters, with times in seconds.

    Args:
        id: the recording's name.
        samples: float32 [samples] at 16 kHz.
        text: normalised (`lact_asr.text.normalise_text`).
        recogniser: gives the log-probabilities, without test-time training.
        characters: whether their times are wanted, too.

    Raises:
        InputError: as `align_text`.
    """
    text = in_case_of(text, recogniser.alphabet.characters) or text
    words, spelling = align_text(recogniser.emission(samples), text, recogniser.alphabet)
    return TimedTranscript(
        id,
        text,
        recogniser.in_seconds(words),
        len(samples) / SAMPLE_RATE_HZ,
        recogniser.in_seconds(spelling) if characters else (),
    )


def character_spans(path: list[int]) -> list[tuple[int, int]]:
    """First frame, and the frame after the last, of each label that a path [T] spells."""
    spans, previous = [], BLANK
    for frame, label in enumerate(path):
        if label != BLANK and label == previous:
            spans[-1] = (spans[-1][0], frame + 1)
        elif label != BLANK:
            spans.append((frame, frame + 1))
        previous = label
    return spans


def _words(text: str, characters: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """The words of the text, from their first character's first frame to their last one's end."""
    words, position = [], 0
    for word in text.split():
        spelling = ""
        first = position
        while len(spelling) < len(word):
            spelling += characters[position][0]
            position += 1
        words.append((word, characters[first][1], characters[position - 1][2]))
    return words
