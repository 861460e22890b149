"""Greedy word and character error rates of a model on labelled batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lact_asr.evaluation_mode import evaluation_mode
from lact_asr.inference.decoding import GreedyDecoder
from lact_asr.inference.ttt_procedure import TestTimeTrainer
from lact_asr.metrics import corpus_character_errors, corpus_word_errors
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.training.stop_request import Stopped, StopRequest


@dataclass(frozen=True)
class ValidationResult:
    """Rates as fractions, and the mean CTC loss.

    Attributes:
        wer, cer: of all utterances that could be read; 0 where there are none.
        loss: CTC loss, mean over utterances.
        utterances: how many these are.
    """

    wer: float
    cer: float
    loss: float
    utterances: int


@torch.no_grad()
def validate(
    model: HybridASRForCTC, batches: Iterable[dict], vocabulary: dict[str, int], device: torch.device,
    show_progress: bool = True, use_ttt: bool = False, stop: StopRequest | None = None,
) -> ValidationResult:  # fmt: skip
    """Transcribe every batch greedily and compare with its texts; all modules' modes are put back afterwards.

    Args:
        model: in any mode.
        batches: with texts and labels.
        vocabulary: token -> id.
        device: where the model is.
        show_progress: show a bar.
        use_ttt: adapt to each utterance first, as the model's configuration says.
        stop: looked at before each batch.

    Raises:
        Stopped: a stop was requested.
    """
    decoder = GreedyDecoder(vocabulary, model.config.ctc_blank_id)
    references, hypotheses, losses = [], [], []
    trainer = TestTimeTrainer(model) if use_ttt else None
    title = "validating with TTT" if use_ttt else "validating"
    with evaluation_mode(model):
        for batch in tqdm(batches, title, leave=False, disable=not show_progress):
            if stop:
                raise Stopped
            inputs, mask = batch["input_values"].to(device), batch["attention_mask"].to(device)
            if trainer is None:
                logits = model(inputs, attention_mask=mask).logits
            else:
                outcomes = trainer.adapt_batch(inputs, mask)
                logits = pad_sequence([outcome.logits for outcome in outcomes], batch_first=True)
            lengths = model.frame_lengths(mask.sum(-1))
            losses += [model.ctc_loss(logits, lengths, batch["labels"].to(device)).item()] * len(batch["texts"])
            log_probs = logits.float().log_softmax(-1).cpu()
            transcripts = decoder.decode_batch(log_probs, lengths.cpu())
            hypotheses += [transcript.text for transcript in transcripts]
            references += batch["texts"]
    return ValidationResult(
        wer=corpus_word_errors(references, hypotheses).rate,
        cer=corpus_character_errors(references, hypotheses).rate,
        loss=sum(losses) / max(1, len(losses)),
        utterances=len(references),
    )
