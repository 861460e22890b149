"""Transformers' Wav2Vec2ForCTC in the place of our model: the same data, training loop and decoding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2ForCTC

from benchmarks.training_systems import peer_config
from lact_asr import HybridASRConfig, HybridASRForCTC
from lact_asr.front_end.geometry import FrameGeometry
from lact_asr.modeling_hybrid_asr import HybridASROutput


class PeerFrontEnd(nn.Module):
    """Wav2Vec2's convolutions as the front-end warm start calls them."""

    def __init__(self, wav2vec2: Wav2Vec2ForCTC, config: HybridASRConfig) -> None:
        super().__init__()
        self.feature_extractor = wav2vec2.wav2vec2.feature_extractor
        self.output_dim = config.conv_dim[-1]
        self._count = (wav2vec2._get_feat_extract_output_lengths,)  # in a tuple: no submodule
        geometry = FrameGeometry.of(wav2vec2.config)
        self.samples_per_frame = geometry.samples_per_frame
        self.receptive_field_samples = geometry.receptive_field_samples

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """[B] samples -> [B] frames."""
        return self._count[0](sample_lengths)

    def forward(self, input_values: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(features [B, T, C], lengths [B]) of [B, samples]."""
        return self.feature_extractor(input_values).transpose(1, 2), self.frame_lengths(sample_lengths)


class Wav2Vec2Peer(nn.Module):
    """A Wav2Vec2ForCTC of as many parameters as our model of ``config``, with the interface that training and inference use.

    Args:
        config: our configuration; `benchmarks.training_systems.peer_config` says what of it the peer takes over.
    """

    masked_prediction = ttt_rates = None
    ctc_loss = HybridASRForCTC.ctc_loss

    def __init__(self, config: HybridASRConfig) -> None:
        super().__init__()
        self.config = config
        wav2vec2 = Wav2Vec2ForCTC(peer_config(config))
        # Registered first, so that the optimiser's groups know front end and output layer by our names.
        self.front_end = PeerFrontEnd(wav2vec2, config)
        self.ctc_head = wav2vec2.lm_head
        self.wav2vec2 = wav2vec2

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """[B] samples -> [B] frames."""
        return self.front_end.frame_lengths(sample_lengths)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> HybridASROutput:
        """As `HybridASRForCTC.forward`, with the same CTC loss."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        logits = self.wav2vec2(input_values, attention_mask=attention_mask).logits
        output = HybridASROutput(logits=logits, frame_lengths=self.frame_lengths(attention_mask.sum(-1)))
        if labels is not None:
            output.loss = self.ctc_loss(logits, output.frame_lengths, labels)
            output.ctc_loss = output.loss.detach()
        return output
