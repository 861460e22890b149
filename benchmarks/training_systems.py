"""Our model and a Wav2Vec2 of equal size, each with its optimiser, and a training step taken apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from benchmarks.counts import ModelCounts, of_seconds
from benchmarks.model import autocast
from lact_asr import HybridASRConfig, HybridASRForCTC
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.training.block_options import checkpoint_activations, compile_in_place
from lact_asr.training.optimization import make_optimizer, parameter_groups

OURS, PEER = "hybrid", "Wav2Vec2ForCTC"
PARTS = ("forward", "backward", "optimiser")
LEARNING_RATE = 1e-5
MAX_GRAD_NORM = 1.0
Clock = Callable[[], float]


def our_config(path: str, vocabulary_size: int) -> HybridASRConfig:
    """A configuration file's model, trained with CTC alone: no other loss asks for a second pass."""
    config = HybridASRConfig.from_json_file(path)
    config.enable_ttt, config.ttt_training, config.ctc_vocab_size = False, "none", vocabulary_size
    return config


def peer_config(ours: HybridASRConfig) -> Wav2Vec2Config:
    """A Wav2Vec2 with our front end, width, depth, heads, regularisation and number of parameters.

    What our blocks spend on fast weights its feed-forward networks have in width; the strides are the stock ones (50 frames a second).
    """

    def config(intermediate_size: int) -> Wav2Vec2Config:
        return Wav2Vec2Config(
            conv_dim=ours.conv_dim, conv_bias=ours.conv_bias, feat_extract_norm=ours.feat_extract_norm,
            hidden_size=ours.hidden_size, num_hidden_layers=ours.num_hidden_layers,
            num_attention_heads=ours.num_attn_heads, intermediate_size=intermediate_size, do_stable_layer_norm=True,
            vocab_size=ours.ctc_vocab_size, pad_token_id=ours.ctc_blank_id, ctc_loss_reduction="mean",
            ctc_zero_infinity=True, hidden_dropout=ours.hidden_dropout, activation_dropout=ours.hidden_dropout,
            attention_dropout=ours.attention_dropout, feat_proj_dropout=ours.hidden_dropout, final_dropout=ours.hidden_dropout,
            layerdrop=ours.layerdrop, mask_time_prob=ours.mask_time_prob, mask_time_length=ours.mask_time_length,
            mask_feature_prob=ours.mask_feature_prob, mask_feature_length=ours.mask_feature_length,
        )  # fmt: skip

    with torch.device("meta"):
        wanted = number_of_parameters(HybridASRForCTC(ours))
        narrow, wide = (number_of_parameters(Wav2Vec2ForCTC(config(width))) for width in (1, 2))
    return config(1 + round((wanted - narrow) / (wide - narrow)))


def number_of_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Laps:
    """Times between marks, taken on the device: the host need not wait for a GPU at every mark.

    Args:
        device: whose time.
        clock: of a CPU.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device, self._clock, self._marks = device, clock, []
        self.mark()

    def mark(self) -> None:
        if self.device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(self._clock())

    def seconds(self) -> list[float]:
        """Between each mark and the next; waits for the device."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if self.device.type != "cuda":
            return [end - start for start, end in pairs]
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) / 1000.0 for start, end in pairs]


@dataclass
class System:
    """A model in training.

    Attributes:
        name: `OURS` or `PEER`.
        model, optimizer: the model in training mode on the device; AdamW as the training command makes it.
        device: where it is.
        flops_of_utterance: operations of a step for one utterance of so many seconds.
        peak_bytes: memory that building it and its first steps took at most; set by who measures it.
    """

    name: str
    model: HybridASRForCTC | Wav2Vec2ForCTC
    optimizer: torch.optim.Optimizer
    device: torch.device
    flops_of_utterance: Callable[[float], float]
    peak_bytes: int = 0

    @property
    def parameters(self) -> int:
        return number_of_parameters(self.model)

    def step(self, batch: dict[str, torch.Tensor], clock: Clock = time.perf_counter) -> dict[str, float]:
        """One training step on a batch that is on the device: seconds of each of `PARTS`."""
        laps = Laps(self.device, clock)
        with autocast(self.device):
            loss = self.model(**batch).loss
        laps.mark()
        loss.backward()
        laps.mark()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        laps.mark()
        return dict(zip(PARTS, laps.seconds(), strict=True))

    def flops(self, batch: dict[str, torch.Tensor]) -> float:
        """Operations of a step for the real samples of each row; padding is waste."""
        return sum(
            self.flops_of_utterance(samples / SAMPLE_RATE_HZ) for samples in batch["attention_mask"].sum(-1).tolist()
        )

    def frames(self, batch: dict[str, torch.Tensor]) -> int:
        """Real frames of a batch."""
        lengths = batch["attention_mask"].sum(-1)
        if isinstance(self.model, HybridASRForCTC):
            return int(self.model.frame_lengths(lengths).sum())
        return int(self.model._get_feat_extract_output_lengths(lengths).sum())


def build_system(
    name: str,
    config: HybridASRConfig,
    device: torch.device,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
) -> System:
    """One of the two systems for our configuration, with random weights from seed 0."""

    def build() -> HybridASRForCTC | Wav2Vec2ForCTC:
        return HybridASRForCTC(config) if name == OURS else Wav2Vec2ForCTC(peer_config(config))

    flops_of_utterance = of_seconds(ModelCounts(build).flops)
    torch.manual_seed(0)
    model = build().to(device).train()
    optimizer = make_optimizer(parameter_groups(model, LEARNING_RATE, 1.0, weight_decay=0.01))
    if gradient_checkpointing:
        checkpoint_activations(model)
    if compiled:
        ours = isinstance(model, HybridASRForCTC)
        compile_in_place(
            [model.front_end, *model.blocks]
            if ours
            else [model.wav2vec2.feature_extractor, *model.wav2vec2.encoder.layers]
        )
    return System(name, model, optimizer, device, flops_of_utterance)
