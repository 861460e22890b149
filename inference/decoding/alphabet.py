"""The columns of a CTC output that are text."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from lact_asr.errors import InputError

_SPECIAL_TOKEN = re.compile(r"[<\[].+[>\]]")
_WORD_DELIMITERS = ("|", " ")

LogProbs = torch.Tensor | np.ndarray


def respell(text: str, spelling: Mapping[str, str]) -> str:
    """Change characters, such as between the cases of an acoustic and a language model."""
    return "".join(spelling.get(character, character) for character in text)


def in_case_of(text: str, characters: Iterable[str]) -> str | None:
    """A text as a model spells it: as it is, or in upper or lower case; None where characters are missing in each."""
    known = {" ", *characters}
    return next((case for case in (text, text.upper(), text.lower()) if known.issuperset(case)), None)


class CTCAlphabet:
    """The columns of a CTC output that can be text, and what they mean.

    Attributes:
        columns: int64 [U], usable columns of the vocabulary; the blank is the first.
        labels: for each of them "" (the blank), " " (the word delimiter) or its characters.
    """

    def __init__(self, vocabulary: Mapping[str, int], blank_id: int):
        """Sort a tokenizer's vocabulary (token to id) into text and the rest.

        Raises:
            InputError: two tokens share an id, or no token is left for text.
        """
        if len(set(vocabulary.values())) != len(vocabulary):
            raise InputError("the vocabulary gives one id to several tokens")
        delimiter = next((token for token in _WORD_DELIMITERS if token in vocabulary), None)
        columns, labels = [blank_id], [""]
        for token, index in sorted(vocabulary.items(), key=lambda item: item[1]):
            if index == blank_id or _SPECIAL_TOKEN.fullmatch(token):
                continue
            label = " " if token == delimiter else token
            if label != " " and (not label or label.split() != [label]):
                continue  # tokens of or with white space would break words unseen
            columns.append(index)
            labels.append(label)
        if len(columns) == 1:
            raise InputError("the vocabulary holds no character: only the blank and special tokens")
        self.columns = np.array(columns)
        self._set_labels(labels)

    def _set_labels(self, labels: list[str]) -> None:
        self.labels = labels
        self._index = {label: index for index, label in enumerate(labels)}
        # Longest first: where labels of several characters are among them, they are what a word is spelt with.
        self._spelling = re.compile("|".join(map(re.escape, sorted(filter(None, labels), key=len, reverse=True))))

    def respelt(self, spelling: Mapping[str, str]) -> CTCAlphabet:
        """The same columns with other characters for theirs."""
        alphabet = copy.copy(self)
        alphabet._set_labels([respell(label, spelling) for label in self.labels])
        return alphabet

    @property
    def has_delimiter(self) -> bool:
        """Whether words can be told apart."""
        return " " in self.labels

    @property
    def characters(self) -> list[str]:
        """The characters that spell words, sorted."""
        return sorted(set("".join(self.labels)) - {" "})

    def can_spell(self, text: str) -> bool:
        """Whether `spell` gives all of a text."""
        return "".join(self._spelling.findall(text)) == text

    def spell(self, text: str) -> list[int]:
        """Indices into `labels` that spell a text, by the longest labels from the left; characters without a label are passed over."""
        return [self._index[label] for label in self._spelling.findall(text)]

    def token_ids(self, text: str) -> list[int]:
        """As `spell`, in ids of the vocabulary."""
        return self.columns[self.spell(text)].tolist() if text else []

    def prepare(self, log_probs: LogProbs, length: int | None) -> np.ndarray:
        """Cut one utterance out of its padding and columns, and renormalise it.

        Args:
            log_probs: [T, V] log-probabilities or logits; -inf is allowed, not for all text columns of a frame.
            length: number of real frames; None for all.

        Returns:
            float64 [length, U] log-probabilities.

        Raises:
            ValueError: another shape, a length that does not fit, or NaN or +inf among the real frames.
        """
        if log_probs.ndim != 2 or log_probs.shape[1] <= self.columns.max():
            raise ValueError(
                f"log_probs must be [frames, at least {self.columns.max() + 1} tokens], not {tuple(log_probs.shape)}"
            )
        length = log_probs.shape[0] if length is None else int(length)
        if not 0 <= length <= log_probs.shape[0]:
            raise ValueError(f"length {length} does not fit log_probs of {log_probs.shape[0]} frames")
        frames = log_probs[:length]
        if isinstance(frames, torch.Tensor):
            frames = frames.detach().to(device="cpu", dtype=torch.float32).numpy()
        frames = frames.astype(np.float64)
        if np.isnan(frames).any() or np.isposinf(frames).any():
            raise ValueError("log_probs hold NaN or infinity: the model's output is broken")
        frames = frames[:, self.columns]
        peak = frames.max(axis=1, keepdims=True)
        if np.isneginf(peak).any():
            raise ValueError("log_probs give no probability to any text token or the blank in some frame")
        return frames - (peak + np.log(np.exp(frames - peak).sum(axis=1, keepdims=True)))


def text_ids(vocabulary: Mapping[str, int], blank_id: int) -> torch.Tensor:
    """Ids of the tokens that spell words, int64: not the blank, the word delimiter and special tokens."""
    alphabet = CTCAlphabet(vocabulary, blank_id)
    pairs = zip(alphabet.columns.tolist(), alphabet.labels, strict=True)
    return torch.tensor([column for column, label in pairs if label not in ("", " ")])
