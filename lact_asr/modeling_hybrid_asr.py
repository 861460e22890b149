"""The hybrid model: waveform -> Wav2Vec2 front end -> LaCT blocks -> CTC logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from lact_asr.attention import BlockWindows, allowed_pairs
from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.evaluation_mode import evaluation_mode
from lact_asr.fast_weight_state import FastWeightState
from lact_asr.lact_layer import FastWeightGate, InitialFastWeights, LaCTLayer
from lact_asr.masked_prediction import MaskedPredictionHead
from lact_asr.masking import span_mask
from lact_asr.ttt_names import parse_groups
from lact_asr.ttt_parameters import LearnedRates
from lact_asr.wav2vec2_encoder import Wav2Vec2FrontEnd, frames_mask


@dataclass
class HybridASROutput(ModelOutput):
    """What `HybridASRForCTC` returns.

    Attributes:
        loss: scalar float32, with labels: CTC, in training with ``enable_ttt`` plus the weighted masked prediction.
        logits: [B, T, vocab]; frames past a row's length say nothing but the blank.
        hidden_states: with ``output_hidden_states``: the input of each block and the normalised output of the last,
            ``num_hidden_layers`` + 1 tensors [B, T, hidden_size].
        fast_weights: for each block the state after the utterance; None in blocks without fast weights.
        frame_lengths: [B] int64, the valid length of each row of logits.
        ctc_loss, ttt_loss: the parts of ``loss``, detached.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    fast_weights: tuple[FastWeightState | None, ...] | None = None
    frame_lengths: Tensor | None = None
    ctc_loss: Tensor | None = None
    ttt_loss: Tensor | None = None


class LaCTBlock(GradientCheckpointingLayer):
    """x + Layer(LN(x)), then x + FFN(LN(x))."""

    def __init__(self, config: HybridASRConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer = LaCTLayer(config)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Dropout(config.hidden_dropout),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        frame_mask: Tensor,
        allowed: Tensor | BlockWindows | None,
        state: FastWeightState | None,
    ) -> tuple[Tensor, FastWeightState | None]:
        """[B, T, hidden_size] -> the same shape and the layer's fast weights; see `LaCTLayer.forward`."""
        mixed, state = self.layer(self.layer_norm(hidden_states), frame_mask, allowed, state)
        hidden_states = hidden_states + self.dropout(mixed)
        return hidden_states + self.dropout(self.feed_forward(hidden_states)), state


class HybridASRPreTrainedModel(PreTrainedModel):
    """Initialisation and loading, as Transformers wants them."""

    config_class = HybridASRConfig
    base_model_prefix = "model"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LaCTBlock"]  # noqa: RUF012 - the base class declares it so

    def _init_weights(self, module: nn.Module) -> None:
        # Transformers calls this for modules that have parameters of their own, not for those that only hold others.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            initialization.normal_(module.weight, std=std)
            if isinstance(module, FastWeightGate):
                initialization.ones_(module.bias)
            elif module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
            initialization.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            initialization.kaiming_normal_(module.weight)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, InitialFastWeights):
            # Rows of unit length on average, so that a Muon update (singular values near 1) is of their order.
            for weight in module.parameters(recurse=False):
                initialization.normal_(weight, std=weight.shape[-1] ** -0.5)
        elif isinstance(module, MaskedPredictionHead):
            initialization.normal_(module.mask_embedding, std=std)
        elif isinstance(module, LearnedRates):
            initialization.constant_(module.log_rates, math.log(module.initial))
            initialization.zeros_(module.log_temperature)


class HybridASRForCTC(HybridASRPreTrainedModel):
    """Wav2Vec2 front end, LaCT blocks and a CTC head.

    Axes: B rows, T frames, D = hidden_size.
    """

    def __init__(self, config: HybridASRConfig) -> None:
        super().__init__(config)
        self.front_end = Wav2Vec2FrontEnd(config)
        self.feature_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.feature_projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.blocks = nn.ModuleList(LaCTBlock(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ctc_head = nn.Linear(config.hidden_size, config.ctc_vocab_size)
        self.masked_prediction = MaskedPredictionHead(config) if config.enable_ttt else None
        self.ttt_rates = None
        if config.ttt_training == "meta":
            self.ttt_rates = LearnedRates(self, parse_groups(config.ttt_parameters), config.ttt_learning_rate)
        self.post_init()
        self._freeze_if_configured()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As the base class does, with ``freeze_encoder`` still in force: loading makes every weight trainable again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_if_configured()
        return loaded

    def _freeze_if_configured(self) -> None:
        if self.config.freeze_encoder:
            self.front_end.requires_grad_(False)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        fast_weights: tuple[FastWeightState, ...] | None = None,
        output_hidden_states: bool = False,
        masked_frames: Tensor | None = None,
        **_: object,
    ) -> HybridASROutput:
        """Logits for each frame; with labels the loss; always the fast weights after the utterance.

        Args:
            input_values: [B, samples] float, 16 kHz, normalised by the processor.
            attention_mask: [B, samples], 1 for real samples; None: all are.
            labels: [B, L] int64, -100 for padding.
            fast_weights: states to start from, one for each block; None: the learned initial weights.
            output_hidden_states: return them too.
            masked_frames: [B, T] bool, frames to hide from the blocks. None draws them in training (SpecAugment, or
                ``ttt_mask_prob`` with ``enable_ttt``) and hides none otherwise.

        Raises:
            ValueError: the audio is shorter than one frame (400 samples), or a label is outside the vocabulary.
        """
        features, lengths, frame_mask = self.encode(input_values, attention_mask)
        if self.training and masked_frames is None:
            masked_frames = self._draw_masked_frames(lengths, features.shape[1])
        blocks_input = features if masked_frames is None else self._hide(features, masked_frames)
        hidden_states, states, every_layer = self._run_blocks(
            self.dropout(self._hide_channels(blocks_input)), frame_mask, fast_weights, output_hidden_states
        )
        logits = self.ctc_head(self.dropout(hidden_states))
        if attention_mask is not None:
            logits = torch.where(frame_mask[..., None], logits, self._silence(logits))
        output = HybridASROutput(logits=logits, hidden_states=every_layer, fast_weights=states, frame_lengths=lengths)
        if labels is not None:
            self._add_losses(output, labels, hidden_states, features, frame_mask, masked_frames)
        return output

    def encode(self, input_values: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks' input: (features [B, T, D], lengths [B], frame_mask [B, T] bool)."""
        sample_lengths = None if attention_mask is None else attention_mask.sum(-1).long()
        features, lengths = self.front_end(input_values, sample_lengths)
        if features.shape[1] == 0:
            raise ValueError(f"{input_values.shape[1]} samples are less than one frame (400 samples).")
        frame_mask = frames_mask(lengths, features.shape[1])
        return self.feature_projection(self.feature_norm(features)), lengths, frame_mask

    def _silence(self, logits: Tensor) -> Tensor:
        """The logits [vocab] of a frame that is surely blank: what decodes padded rows whole, as Transformers' pipeline does,
        reads nothing into their padding."""
        classes = torch.arange(logits.shape[-1], device=logits.device)
        return torch.where(classes == self.config.ctc_blank_id, 0.0, -1e4).to(logits.dtype)

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """The valid length of each row of logits: [B] int64 samples -> [B] int64 frames."""
        return self.front_end.frame_lengths(sample_lengths)

    def masked_prediction_losses(
        self, input_values: Tensor, attention_mask: Tensor | None, masked_frames: Tensor, teacher: Tensor | None = None
    ) -> Tensor:
        """The self-supervised loss of test-time training for each row, without labels: [B], means over masked frames.

        Args:
            input_values, attention_mask: as in `forward`.
            masked_frames: [B, T] bool, the frames to predict.
            teacher: [B, T, D] hidden states to predict, ``hidden_states[-1]`` of an unmasked pass; None runs one.

        Raises:
            ValueError: the model was trained without ``enable_ttt`` and has no predictor.
        """
        if self.masked_prediction is None:
            raise ValueError("This model has no masked-prediction head: it was trained without --enable_ttt.")
        features, _, frame_mask = self.encode(input_values, attention_mask)
        if teacher is None:
            teacher = self._teach(features, frame_mask)
        student, _, _ = self._run_blocks(self._hide(features, masked_frames), frame_mask)
        sums, counts = self.masked_prediction.losses(student, teacher, masked_frames & frame_mask)
        return sums / counts.clamp(min=1)

    @torch.no_grad()
    def _teach(self, features: Tensor, frame_mask: Tensor) -> Tensor:
        """The unmasked pass, as the model itself would say it: no dropout, every layer, no gradient."""
        with evaluation_mode(self):
            teacher, _, _ = self._run_blocks(features, frame_mask)
        return teacher

    def _add_losses(
        self, output: HybridASROutput, labels: Tensor, hidden_states: Tensor, features: Tensor, frame_mask: Tensor,
        masked_frames: Tensor | None,
    ) -> None:  # fmt: skip
        output.loss = self.ctc_loss(output.logits, output.frame_lengths, labels)
        output.ctc_loss = output.loss.detach()
        if self.training and self.masked_prediction is not None and self.config.ttt_training != "meta":
            teacher = self._teach(features, frame_mask)
            ttt_loss = self.masked_prediction.loss(hidden_states, teacher, masked_frames & frame_mask)
            output.loss = output.loss + self.config.ttt_loss_weight * ttt_loss
            output.ttt_loss = ttt_loss.detach()

    def ctc_loss(self, logits: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """CTC (Graves et al. 2006), a scalar: each row's loss over its number of labels, then the mean over rows.

        Args:
            logits: [B, T, vocab].
            lengths: [B] int64, the valid length of each row.
            labels: [B, L] int64, negative for padding.

        Raises:
            ValueError: a label is outside the vocabulary.
        """
        if labels.numel() and labels.max() >= self.config.ctc_vocab_size:
            raise ValueError(f"Label {int(labels.max())} is outside the vocabulary of {self.config.ctc_vocab_size}.")
        real = labels >= 0
        log_probs = functional.log_softmax(logits.float(), dim=-1).transpose(0, 1)
        return functional.ctc_loss(
            log_probs, labels.masked_fill(~real, 0), lengths, real.sum(-1), blank=self.config.ctc_blank_id,
            reduction="mean", zero_infinity=self.config.ctc_zero_infinity,
        )  # fmt: skip

    def _run_blocks(
        self,
        hidden_states: Tensor,
        frame_mask: Tensor,
        fast_weights: tuple[FastWeightState, ...] | None = None,
        keep_all: bool = False,
    ) -> tuple[Tensor, tuple[FastWeightState, ...], tuple[Tensor, ...] | None]:
        allowed = allowed_pairs(frame_mask, self.config.window_size)
        states, every_layer = [], []
        for block, state in zip(self.blocks, fast_weights or [None] * len(self.blocks), strict=True):
            every_layer.append(hidden_states)
            if self.training and float(torch.rand(())) < self.config.layerdrop:
                states.append(state)
                continue
            hidden_states, state = block(hidden_states, frame_mask, allowed, state)
            states.append(state)
        hidden_states = self.final_norm(hidden_states)
        return hidden_states, tuple(states), (*every_layer, hidden_states) if keep_all else None

    def _hide(self, features: Tensor, masked_frames: Tensor) -> Tensor:
        """Replace masked frames by the mask embedding, or by zero (the features' mean) without one."""
        if self.masked_prediction is None:
            return features.masked_fill(masked_frames[..., None], 0.0)
        embedding = self.masked_prediction.mask_embedding.to(features.dtype)
        return torch.where(masked_frames[..., None], embedding, features)

    def _hide_channels(self, features: Tensor) -> Tensor:
        """In training, SpecAugment (arXiv 1904.08779) over the channels of the projected features."""
        config = self.config
        if not self.training or config.mask_feature_prob == 0:
            return features
        channels = torch.full((features.shape[0],), features.shape[-1], device=features.device)
        mask = span_mask(channels, features.shape[-1], config.mask_feature_prob, config.mask_feature_length)
        return features.masked_fill(mask[:, None], 0.0)

    def _draw_masked_frames(self, lengths: Tensor, frames: int) -> Tensor:
        config = self.config
        if config.enable_ttt:
            return span_mask(lengths, frames, config.ttt_mask_prob, config.ttt_mask_length)
        return span_mask(lengths, frames, config.mask_time_prob, config.mask_time_length)
