"""When test-time training leaves an utterance as it was: rules that need no transcript, each with its reason in a few words.

| reason | rule |
|---|---|
| no steps were asked for | no stage has a step |
| the model's output is not finite | NaN or infinity in the unadapted logits |
| the recording is silent | root mean square of the input below 0.001: digital silence after the processor's normalisation, −60 dB of full scale without |
| the utterance is too short to mask | a loss hides frames, and there are no more than two spans |
| no frame is anything but blank | the blank is the most likely class of every unadapted frame |
| the output is too uncertain to learn from | the mean entropy of the unadapted output's non-blank frames is above ``max_entropy`` · log V; or the first loss, an entropy, is above ``entropy_margin`` · log V (in `lact_asr.inference.ttt.stage`, as the next) |
| the self-supervised loss or its gradient is not finite | NaN or infinity in either, at any step |
| the adapted weights are not finite | NaN or infinity in what adapts, after the last step |
| the weights moved too far | ‖W − W₀‖ > ``max_change`` · ‖W₀‖ over all parameters that adapt (only where the settings give a limit) |
| the adapted output is not finite | NaN or infinity in the adapted logits |
| the adapted output collapsed to blanks | the blank is the most likely class of every adapted frame |
| the adapted output spells nothing | no most likely class is text, but one was before |
| the adapted output repeats one token | of 5 or more spelled tokens more than 60 % are one, which was not so before |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lact_asr.inference.alignment.ctc_paths import collapse_path
from lact_asr.inference.ttt.objectives import all_finite, finite_rows, is_all_blank, spoken_entropy
from lact_asr.inference.ttt.settings import TTTSettings

SILENCE_RMS = 1e-3
TOO_UNCERTAIN = "the output is too uncertain to learn from"
REPEATED_SHARE, FEWEST_TOKENS = 0.6, 5


def refusal_before(samples: Tensor, logits: Tensor, stages: Sequence[TTTSettings], blank_id: int) -> str:
    """Why there is nothing to learn from an utterance, or nothing.

    Args:
        samples: the model's input for it, without padding.
        logits: [T, V] of the unadapted model.
        stages: how to adapt.
        blank_id: the CTC blank.
    """
    if not any(settings.steps for settings in stages):
        return "no steps were asked for"
    if not all_finite(logits):
        return "the model's output is not finite"
    if samples.float().square().mean().sqrt() < SILENCE_RMS:
        return "the recording is silent"
    if any(settings.loss.masks and len(logits) <= 2 * settings.mask_length for settings in stages):
        return "the utterance is too short to mask"
    if is_all_blank(logits, blank_id):
        return "no frame is anything but blank"
    limit = min(settings.entropy_limit for settings in stages)
    if limit < 1 and spoken_entropy(logits, blank_id) > limit * math.log(logits.shape[-1]):
        return TOO_UNCERTAIN
    return ""


def refusals_of_weights(
    weights: Mapping[str, Tensor], source: Mapping[str, Tensor], max_change: float | None, rows: int
) -> list[str]:
    """For each row why its adapted weights must not be used, or nothing.

    Args:
        weights: what adapts, by name, [rows, ...]; of a single row as the parameters.
        source: the parameters that it started from; vectors that start at 0 are none and have no part in the distance.
        max_change: the largest relative distance; None for any.
        rows: utterances that adapted at once.
    """
    reasons = ["" if finite else "the adapted weights are not finite" for finite in finite_rows(weights.values(), rows)]
    if max_change is not None and source:
        distances = (weights[name].reshape(rows, -1) - parameter.flatten() for name, parameter in source.items())
        moved = sum(distance.double().square().sum(1) for distance in distances)  # [rows]
        length = sum(parameter.double().square().sum() for parameter in source.values())
        too_far = (moved > max_change**2 * length).tolist()
        reasons = [
            reason or ("the weights moved too far" if far else "") for reason, far in zip(reasons, too_far, strict=True)
        ]
    return reasons


def refusal_after(before: Tensor, adapted: Tensor, blank_id: int, text_ids: Tensor | None = None) -> str:
    """Why the adapted output must not replace the unadapted one, or nothing.

    Args:
        before, adapted: logits [T, V].
        blank_id: the CTC blank.
        text_ids: int64, the classes that spell text; None: every class but the blank.
    """
    if not all_finite(adapted):
        return "the adapted output is not finite"
    if is_all_blank(adapted, blank_id):
        return "the adapted output collapsed to blanks"
    if text_ids is not None and _spells(before, text_ids) and not _spells(adapted, text_ids):
        return "the adapted output spells nothing"
    if _repeats_one_token(adapted, blank_id) and not _repeats_one_token(before, blank_id):
        return "the adapted output repeats one token"
    return ""


def _spells(logits: Tensor, text_ids: Tensor) -> bool:
    return bool(torch.isin(logits.argmax(-1), text_ids.to(logits.device)).any())


def _repeats_one_token(logits: Tensor, blank_id: int) -> bool:
    labels = collapse_path(logits.argmax(-1), blank_id)
    if len(labels) < FEWEST_TOKENS:
        return False
    return bool(labels.bincount().max() > REPEATED_SHARE * len(labels))
