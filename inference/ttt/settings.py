"""How to adapt: the settings of test-time training, and what they come to for a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig

from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.inference.ttt.copies import Copies, parameter_copies
from lact_asr.inference.ttt.frozen_layers import without_layers
from lact_asr.inference.ttt.losses import WeightedSum
from lact_asr.inference.ttt.optimizers import InnerOptimizer
from lact_asr.inference.ttt.views import Guides
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.ttt_names import CONTROLS, FALLBACK_LOSS, FEATURE_OFFSET, OPTIMIZERS, SEARCH, parse_groups
from lact_asr.ttt_parameters import available_groups, front_end_of, select_parameters

LEARNING_RATE = 2e-3  # of AdamW, for models trained here
# SUTA's for wav2vec2-base-960h (arXiv 2203.14222): what suits models trained here might be far too much for those of months of training.
PUBLISHED_LEARNING_RATE, PUBLISHED_STEPS = 2e-5, 10
HIGHEST_LEARNING_RATE = 1e30  # beyond it AdamW's own arithmetic overflows


@dataclass(frozen=True)
class TTTSettings:
    """How to adapt.

    Attributes:
        loss_type: one of `lact_asr.inference.ttt.losses.OBJECTIVES`, or a weighted sum, "masked_prediction+0.3*entropy".
        steps: optimiser steps; 0 changes nothing.
        parameters: groups of `lact_asr.ttt_parameters`; None takes the first loss's default.
        optimizer: "adamw", "sgd" or "muon" (for matrices; AdamW for the rest); "cma_es" searches without gradients.
        learning_rate: of the optimiser, which is fresh for each utterance; None takes the rates that meta-training learned for
            this loss, these parameters and this optimiser, if any, else the first loss's default or that of
            the kind of model. Of cma_es the first standard deviation.
        final_learning_rate: where a cosine from ``learning_rate`` ends: γ_k = γ_K + ½ (γ_0 − γ_K)(1 + cos(π k / K)) at step k
            of K (arXiv 1608.03983); None keeps the rate.
        sharpness: ρ of sharpness-aware steps, whose gradient is taken at W + ρ ∇ / ‖∇‖; 0 for plain ones.
        entropy_margin: no step where the loss, an entropy, is above this share of log V, its largest; None for all.
        beam_size: beams of the path that generalised_entropy looks at; 1 for the greedy path.
        population: candidates in a generation of cma_es.
        mask_prob, mask_length: share of frames to mask, and frames in a span.
        chunk_size: frames of audio whose loss is computed at a time, to bound memory; -1 for the whole utterance.
        seed: of the masks; each utterance starts from it, so that its result does not depend on the others.
        constant_updates: gradients take what tokens do to fast weights for constant (`lact_asr.lact_layer.constant_updates`), which
            costs less; one stage's choice is all stages'. None: see `savings`.
        frozen_layers: how many of the front end's lowest layers do not adapt, whatever ``parameters`` says; they run once an utterance,
            which makes each step cheaper. None: see `savings`.
        max_entropy: an utterance is left as it is where the mean entropy of the unadapted output's non-blank frames is above this share of log V,
            its largest; 1 for never, None for the first loss's limit.
        max_change: the largest ‖W − W₀‖ / ‖W₀‖ of an adaptation that counts; None for any.
        control: for experiments, one of `lact_asr.ttt_names.CONTROLS`: a step that must not help; None for none.

    Raises:
        InputError: a value is impossible.
    """

    loss_type: str = "masked_prediction"
    steps: int = 1
    parameters: tuple[str, ...] | None = None
    optimizer: str = "adamw"
    learning_rate: float | None = None
    mask_prob: float = 0.15
    mask_length: int = 10
    chunk_size: int = -1
    seed: int = 0
    final_learning_rate: float | None = None
    sharpness: float = 0.0
    entropy_margin: float | None = None
    beam_size: int = 1
    population: int = 50
    constant_updates: bool | None = None
    frozen_layers: int | None = None
    max_entropy: float | None = None
    max_change: float | None = None
    control: str | None = None

    def __post_init__(self) -> None:
        loss = self.loss
        known = (*OPTIMIZERS, SEARCH)
        if self.optimizer not in known:
            raise InputError(f"Unknown TTT optimizer {self.optimizer!r}; choose {', '.join(known)}.")
        if self.steps < 0:
            raise InputError(f"TTT needs 0 or more steps, not {self.steps}.")
        if self.frozen_layers is not None and self.frozen_layers < 0:
            raise InputError(f"TTT freezes 0 or more layers of the front end, not {self.frozen_layers}.")
        if self.learning_rate is not None and not 0 < self.learning_rate <= HIGHEST_LEARNING_RATE:
            raise InputError(
                f"The learning rate of TTT must be above 0 and at most {HIGHEST_LEARNING_RATE:g}, not {self.learning_rate}."
            )
        if self.chunk_size != -1 and self.chunk_size < 1:
            raise InputError(f"TTT's chunks must have 1 or more frames, or -1 for all, not {self.chunk_size}.")
        if self.control is not None and self.control not in CONTROLS:
            raise InputError(f"Unknown TTT control {self.control!r}; choose {', '.join(CONTROLS)}.")
        if loss.masks:
            self._check_masks()
        self._check_refinements(loss)

    @classmethod
    def of(cls, config: PreTrainedConfig, **changes) -> TTTSettings:
        """What a model's configuration says, with some values changed; what it says of another loss is left out.

        A model of Transformers says nothing: it takes SUTA's loss and as many steps, unless another loss is named.
        """
        if not isinstance(config, HybridASRConfig):
            loss_type = changes.get("loss_type", FALLBACK_LOSS)
            steps = PUBLISHED_STEPS if loss_type == FALLBACK_LOSS else cls.steps
            return cls(**{"loss_type": loss_type, "steps": steps, **changes})
        loss_type = changes.get("loss_type", config.default_ttt_loss)
        values = {
            "loss_type": loss_type,
            "steps": config.ttt_steps,
            "mask_prob": config.ttt_mask_prob,
            "mask_length": config.ttt_mask_length,
            "chunk_size": config.ttt_chunk_size,
        }
        if loss_type == config.ttt_loss_type:
            values["parameters"] = None if config.ttt_parameters is None else parse_groups(config.ttt_parameters)
            values["optimizer"] = config.ttt_optimizer
        settings = cls(**{**values, **changes})
        # Of a meta-trained model the learned rates count, not the one that they started from.
        if "learning_rate" in changes or config.ttt_training == "meta" or not settings.is_as_trained(config):
            return settings
        return dataclasses.replace(settings, learning_rate=config.ttt_learning_rate)

    def is_as_trained(self, config: HybridASRConfig) -> bool:
        """Whether a configuration's learning rate, or the learned ones, are meant for this loss, this optimizer and all that adapts."""
        trained_for = self.loss.parameters if config.ttt_parameters is None else parse_groups(config.ttt_parameters)
        adapts = set(self.parameters or self.loss.parameters)
        same = (self.loss_type, self.optimizer) == (config.ttt_loss_type, config.ttt_optimizer)
        return same and adapts <= set(trained_for)

    def resolved(self, config: PreTrainedConfig) -> TTTSettings:
        """What `Adaptation` makes of these for a model that hears samples, with nothing left open; only a learning rate of None stays, where rates were learned."""
        groups, hybrid = self.parameters or self.loss.parameters, isinstance(config, HybridASRConfig)
        learned = hybrid and config.ttt_training == "meta"
        constant_updates, frozen_layers = self.savings(groups, learned, hybrid)
        rate = self.learning_rate
        if rate is None and self.optimizer != "sgd" and not (learned and self.is_as_trained(config)):
            rate = self.default_rate(hybrid)
        return dataclasses.replace(
            self,
            parameters=groups,
            learning_rate=rate,
            constant_updates=constant_updates,
            frozen_layers=frozen_layers,
            max_entropy=self.entropy_limit,
        )

    def default_rate(self, hybrid: bool) -> float:
        """The learning rate where none is given or learned, for a model of this package (``hybrid``) or of Transformers."""
        _, first = self.loss.terms[0]
        by_kind = LEARNING_RATE if hybrid or self.optimizer == SEARCH else PUBLISHED_LEARNING_RATE
        return by_kind if first.learning_rate is None else first.learning_rate

    @property
    def loss(self) -> WeightedSum:
        """What ``loss_type`` says."""
        return WeightedSum.parse(self.loss_type)

    @property
    def entropy_limit(self) -> float:
        """What ``max_entropy`` comes to."""
        _, first = self.loss.terms[0]
        return first.max_entropy if self.max_entropy is None else self.max_entropy

    def savings(self, groups: Collection[str], learned: bool, hybrid: bool = True) -> tuple[bool, int]:
        """(constant_updates, frozen_layers) of steps.

        What was not set is the first loss's own, as long as its own parameters adapt, at rates that were not learned with full gradients,
        and the model is of this package; otherwise nothing is left out.

        Args:
            groups: what adapts.
            learned: whether meta-training has learned the rates.
            hybrid: whether the model is of this package.
        """
        _, first = self.loss.terms[0]
        own = set(groups) == set(first.parameters) and hybrid and not learned
        constant, frozen = (first.constant_updates, first.frozen_layers) if own else (False, 0)
        return (
            constant if self.constant_updates is None else self.constant_updates,
            frozen if self.frozen_layers is None else self.frozen_layers,
        )

    def rate_factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of ``learning_rate``."""
        if self.final_learning_rate is None:
            return 1.0
        final = self.final_learning_rate / self.learning_rate
        return final + 0.5 * (1 - final) * (1 + math.cos(math.pi * step / self.steps))

    def _check_refinements(self, loss: WeightedSum) -> None:
        if self.final_learning_rate is not None and (self.learning_rate is None or not self.final_learning_rate >= 0):
            raise InputError("A final learning rate of TTT must be 0 or more, and needs a learning rate to start from.")
        if not 0 <= self.sharpness < math.inf:
            raise InputError(f"The radius of TTT's sharpness-aware steps must be 0 or more, not {self.sharpness}.")
        for name in ("entropy_margin", "max_entropy", "max_change"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"TTT's {name} must be above 0, not {value}.")
        for name, least in (("beam_size", 1), ("population", 2)):
            if getattr(self, name) < least:
                raise InputError(f"TTT's {name} must be {least} or more, not {getattr(self, name)}.")
        if self.sharpness and loss.masks:
            raise InputError(
                f"Sharpness-aware steps and the TTT loss {self.loss_type}, which draws masks, do not go together."
            )
        if self.optimizer == SEARCH and (self.parameters or loss.parameters) != (FEATURE_OFFSET,):
            raise InputError(f"The TTT optimizer {SEARCH} searches for a {FEATURE_OFFSET} and nothing else.")
        if self.optimizer == SEARCH and self.control == "zero_rate":
            raise InputError(f"The TTT optimizer {SEARCH} has no learning rate to set to 0.")
        if loss.whole and self.chunk_size != -1:
            raise InputError(f"The TTT loss {self.loss_type} looks at the whole utterance: chunks must be -1.")
        if loss.features and self.control == "shuffled_targets":
            raise InputError(f"The TTT loss {self.loss_type} has no targets to shuffle.")

    def _check_masks(self) -> None:
        if not 0 < self.mask_prob < 1:
            raise InputError(f"The share of frames to mask must be between 0 and 1, not {self.mask_prob}.")
        if self.mask_length < 1:
            raise InputError(f"The spans to mask must have 1 or more frames, not {self.mask_length}.")
        if -1 < self.chunk_size <= self.mask_length:
            raise InputError(
                f"TTT's chunks of {self.chunk_size} frames have no room for masks of {self.mask_length}; "
                "use longer ones, or -1 for the whole utterance."
            )


class Adaptation:
    """What settings come to for a model: the loss, what adapts, and at which rates.

    Args:
        model: `HybridASRForCTC` or a Transformers CTC model.
        settings: see `TTTSettings`.
        guides: what some losses need beside the model.

    Attributes:
        groups: names of what adapts.
        parameters: of the model, by name.
        names: of all that adapts.
        front_end: whose output has a vector added, or None.
        rates: one for all, or a tensor for each name, through which gradients flow to the model's `LearnedRates`.
        constant_updates, frozen_layers: what steps leave out; see `TTTSettings`.

    Raises:
        InputError: the model has no such parameters, no masked-prediction head, cannot hide frames or be run in chunks, or
            there are no statistics of training for a loss that needs them.
    """

    def __init__(self, model: nn.Module, settings: TTTSettings, guides: Guides = Guides()) -> None:  # noqa: B008 - frozen
        self.model, self.settings, self.loss, self.guides = model, settings, settings.loss, guides
        self._check_loss()
        self._check_chunks()
        self.groups = settings.parameters or available_groups(model, self.loss.parameters)
        learned = getattr(model, "ttt_rates", None) is not None
        hybrid = isinstance(model, HybridASRForCTC)
        self.constant_updates, self.frozen_layers = settings.savings(self.groups, learned, hybrid)
        self.parameters = without_layers(select_parameters(model, self.groups), model, self.frozen_layers)
        self.front_end = front_end_of(model) if FEATURE_OFFSET in self.groups else None
        self.names = {*self.parameters, *({FEATURE_OFFSET} & set(self.groups))}
        self.rates = self._rates(settings.default_rate(hybrid))

    def copies(self, rows: int) -> AbstractContextManager[Copies]:
        """What adapts, by name, while the model computes with it; see `parameter_copies`."""
        return parameter_copies(self.model, self.parameters, rows, self.front_end)

    def optimizer(self) -> InnerOptimizer:
        """A fresh one."""
        return InnerOptimizer(self.settings.optimizer, self.parameters, self.rates)

    def _check_loss(self) -> None:
        if self.loss.head and getattr(self.model, "masked_prediction", None) is None:
            raise InputError(
                "This model has no masked-prediction head (it was trained without --enable_ttt); "
                "use --ttt_loss_type entropy."
            )
        if self.loss.statistics and self.guides.statistics is None:
            raise InputError(
                f"The TTT loss {self.settings.loss_type} needs statistics of training; "
                "write them with python -m lact_asr.inference.feature_statistics."
            )
        if self.loss.masks and not isinstance(self.model, HybridASRForCTC):
            raise InputError(
                f"{type(self.model).__name__} cannot hide frames, which the TTT loss {self.settings.loss_type} needs; "
                "use --ttt_loss_type entropy."
            )

    def _check_chunks(self) -> None:
        if self.settings.chunk_size != -1 and not hasattr(self.model.config, "conv_stride"):
            raise InputError(
                f"{type(self.model).__name__} does not hear samples, so that TTT cannot cut them in chunks: use -1."
            )

    def _rates(self, default: float) -> float | dict[str, Tensor]:
        settings = self.settings
        if settings.control == "zero_rate":
            return 0.0
        if settings.learning_rate is not None:
            return settings.learning_rate
        learned = getattr(self.model, "ttt_rates", None)
        if learned is not None and settings.is_as_trained(self.model.config):
            return learned()
        if settings.optimizer == "sgd":
            raise InputError("TTT with sgd needs a learning rate: the default ones are AdamW's.")
        return default
