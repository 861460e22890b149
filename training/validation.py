"""Greedy word and character error rates of a model on labelled batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from lact_asr.inference.decoding import GreedyDecoder
from lact_asr.metrics import corpus_character_errors, corpus_word_errors
from lact_asr.modeling_hybrid_asr import HybridASRForCTC


@dataclass(frozen=True)
class ValidationResult:
    """Rates as fractions, the mean CTC loss, and the first few transcripts to look at.

    Attributes:
        wer, cer: of the whole set.
        loss: CTC loss, mean over utterances.
        examples: (reference, hypothesis).
    """

    wer: float
    cer: float
    loss: float
    examples: list[tuple[str, str]]


@torch.no_grad()
def validate(
    model: HybridASRForCTC, batches: Iterable[dict], vocabulary: dict[str, int], device: torch.device,
    show_progress: bool = True,
) -> ValidationResult:  # fmt: skip
    """Transcribe every batch greedily and compare with its texts; the model's mode is put back afterwards."""
    decoder = GreedyDecoder(vocabulary, model.config.ctc_blank_id)
    references, hypotheses, losses = [], [], []
    was_training = model.training
    model.eval()
    for batch in tqdm(batches, "validating", leave=False, disable=not show_progress):
        output = model(
            batch["input_values"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            labels=batch["labels"].to(device),
        )
        losses += [output.loss.item()] * len(batch["texts"])
        log_probs = output.logits.float().log_softmax(-1).cpu()
        transcripts = decoder.decode_batch(log_probs, output.frame_lengths.cpu())
        hypotheses += [transcript.text for transcript in transcripts]
        references += batch["texts"]
    model.train(was_training)
    return ValidationResult(
        wer=corpus_word_errors(references, hypotheses).rate,
        cer=corpus_character_errors(references, hypotheses).rate,
        loss=sum(losses) / max(1, len(losses)),
        examples=list(zip(references, hypotheses, strict=True))[:5],
    )
