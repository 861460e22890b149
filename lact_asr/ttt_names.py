"""The words of test-time training's settings, in a module that imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import math
import re

from lact_asr.errors import InputError

LOSSES = {
    "masked_prediction": "the model's own head predicts hidden frames (needs --enable_ttt in training)",
    "entropy": "SUTA: entropy of non-blank frames and class confusion",
    "tent": "plain entropy of all frames",
    "class_confusion": "minimum class confusion alone",
    "generalised_entropy": "SGEM: Rényi entropy on the greedy or the beam search's path, and negative sampling",
    "consistency": "two masked views must agree (CR-CTC)",
    "spoken_entropy": "plain entropy of the non-blank frames (SAR)",
    "confidence_entropy": "CEA's first stage: entropy weighted by itself, and class confusion",
    "coherent_entropy": "CEA's second stage: entropy, class confusion and temporal coherence of features",
    "pseudo_labels": "CTC towards the unadapted transcript, and AWMC's leader's where there is one",
    "alignment": "features and hidden states close to their means in training (needs training statistics)",
    "e_bats": "E-BATS: entropy and alignment to training statistics, of the utterance and of tokens",
}
HEAD_LOSS = "masked_prediction"  # needs a head, which a model may lack
FALLBACK_LOSS = "entropy"  # of models without that head: any output has it
PARAMETER_GROUPS = ("fast_weights", "norms", "front_end", "projection", "biases", "output")
FEATURE_OFFSET = "feature_offset"  # no parameter of the model: a vector added to every frame of the front end's output
OPTIMIZERS = ("adamw", "sgd", "muon")
SEARCH = "cma_es"  # no gradients: candidates for the feature offset are drawn and compared
SCOPES = {
    "utterance": "each starts from the trained model",
    "speaker": "each starts from where its speaker's last one ended",
    "stream": "each starts from where the one before ended",
}
KEEP = {
    "always": "all but broken ones",
    "likelier": "those that both models together, and the language model, find at least as likely as the unadapted one",
}
CONTROLS = {
    "zero_rate": "all of the procedure at a learning rate of 0",
    "shuffled_targets": "each frame learns what the loss wants of another frame of its utterance",
}
TRAININGS = {
    "none": "CTC alone",
    "joint": "CTC and the loss that test-time training minimises",
    "meta": "CTC before and after a step exactly as at test time, whose learning rates are learned",
}
OUTER_LOSSES = {
    "ctc": "CTC, at a learned temperature",
    "word_errors": "the expected word error rate over a few drawn transcripts, at a learned temperature",
    "clean_view": "the divergence from what the unadapted model says of the same audio without noise, at a learned temperature "
    "(needs --noise_dir or --noise_colours)",
}


_OWN_LOSS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def parse_loss(text: str, own: bool = True) -> tuple[tuple[float, str], ...]:
    """Read a loss or a weighted sum, ``[WEIGHT*]NAME[+[WEIGHT*]NAME…]``, as (weight, name) in the order written.

    Args:
        text: names are of `LOSSES`, or MODULE:FUNCTION for a loss of one's own (`lact_asr.inference.ttt.own_losses`).
        own: whether those are allowed: not in a model's configuration, which would then run whatever code it names.

    Raises:
        InputError: an unknown name, or a weight that is no positive number.
    """
    terms = []
    for term in text.split("+"):
        weight, times, name = (part.strip() for part in term.rpartition("*"))
        is_own = _OWN_LOSS.fullmatch(name) is not None
        if is_own and not own:
            raise InputError(
                f"The TTT loss {name} is code of its own: a model can adapt by it, but not be trained for it."
            )
        if name not in LOSSES and not is_own:
            raise InputError(
                f"Unknown TTT loss {name!r}; choose {', '.join(LOSSES)}, MODULE:FUNCTION for one of your own, or a sum of them."
            )
        try:
            value = float(weight) if times else 1.0
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise InputError(f"The weight {weight!r} of the TTT loss {name} is not a number above 0.")
        terms.append((value, name))
    return tuple(terms)


def parse_groups(text: str) -> tuple[str, ...]:
    """Read names of what adapts, with commas.

    Raises:
        InputError: an unknown name.
    """
    groups = tuple(name.strip() for name in text.split(","))
    known = (*PARAMETER_GROUPS, FEATURE_OFFSET)
    for group in groups:
        if group not in known:
            raise InputError(f"Unknown parameter group {group!r} for TTT; choose from {', '.join(known)}.")
    return groups
