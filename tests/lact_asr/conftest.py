"""Factories of small random models that several test files use, and one seed for every test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
    WavLMModel,
)

from lact_asr import HybridASRConfig, HybridASRForCTC

FAMILIES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, Wav2Vec2ForCTC),
    "hubert": (HubertConfig, HubertModel, HubertForCTC),
    "wavlm": (WavLMConfig, WavLMModel, WavLMForCTC),
    "data2vec": (Data2VecAudioConfig, Data2VecAudioModel, Data2VecAudioForCTC),
}
CONV_DIM = (16, 12, 16, 20, 16, 24, 16)  # unequal, so that no layer can be taken for another


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def stock_model() -> Callable[..., nn.Module]:
    """A random model of one family of Transformers, in evaluation mode, with norms that are not the identity."""

    def make(family: str, norm: str = "layer", *, ctc: bool = False, bias: bool = True) -> nn.Module:
        torch.manual_seed(0)
        config_class, base_class, ctc_class = FAMILIES[family]
        config = config_class(
            conv_dim=CONV_DIM,
            conv_bias=bias,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            conv_pos_kernel_size=3,
            vocab_size=8,
            **({} if family == "data2vec" else {"feat_extract_norm": norm}),
        )
        model = (ctc_class if ctc else base_class)(config).eval()
        _randomise_norms(model)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., HybridASRConfig]:
    """A configuration of some thousand parameters, without randomness in training unless it is asked for."""

    def make(**changes) -> HybridASRConfig:
        values = {
            "conv_dim": (8,) * 7,
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attn_heads": 2,
            "num_lact_heads": 2,
            "lact_fw_hidden_dim": 12,
            "ctc_vocab_size": 9,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "layerdrop": 0.0,
            "mask_time_prob": 0.0,
            "ttt_mask_length": 3,
        }
        return HybridASRConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> Callable[..., HybridASRForCTC]:
    """A random model in evaluation mode whose every parameter differs from its neutral value.

    Fresh models have norms of 1 and 0, biases of 0 and learning rates that hardly depend on the token; mistakes in how
    those are used would show in no result.
    """

    def make(**changes) -> HybridASRForCTC:
        torch.manual_seed(1)
        model = HybridASRForCTC(tiny_config(**changes)).eval()
        _randomise_norms(model)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.3)
        return model

    return make


def _randomise_norms(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) and part.weight is not None:
            nn.init.uniform_(part.weight, 0.5, 1.5)
            if getattr(part, "bias", None) is not None:
                nn.init.normal_(part.bias, std=0.3)
