"""Small random models that "speak", for every folder of tests.

Without a GPU, Triton's kernels run in its interpreter, which must be asked for before anything imports Triton.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from lact_asr import HybridASRForCTC

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

FAMILIES = {
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForCTC"),
    "hubert": ("HubertConfig", "HubertForCTC"),
    "wavlm": ("WavLMConfig", "WavLMForCTC"),
    "data2vec": ("Data2VecAudioConfig", "Data2VecAudioForCTC"),
}
ON_SPECTROGRAMS = {"wav2vec2-bert": ("Wav2Vec2BertConfig", "Wav2Vec2BertForCTC")}  # no convolutional front end


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    """Each family of Transformers' CTC models that hear samples."""
    return request.param


@pytest.fixture(scope="session")
def transformers_model() -> Callable[..., nn.Module]:
    """A factory of small random CTC models of a family, in evaluation mode."""

    def make(family: str, **changes) -> nn.Module:
        import transformers  # late: the kernels' tests run without

        config_class, model_class = (getattr(transformers, name) for name in (FAMILIES | ON_SPECTROGRAMS)[family])
        convolutional = {"conv_dim": (8,) * 7} if family in FAMILIES else {"conv_depthwise_kernel_size": 3}
        values = {
            **convolutional,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "conv_pos_kernel_size": 3,
            "vocab_size": 8,
        }
        torch.manual_seed(0)
        model = model_class(config_class(**{**values, **changes})).eval()
        nn.init.normal_(model.lm_head.weight, std=1.0)
        return model

    return make


@pytest.fixture(scope="session")
def speaking_model() -> Callable[..., HybridASRForCTC]:
    """A factory of random models in evaluation mode whose output changes from frame to frame and is mostly no blank."""
    from lact_asr import HybridASRConfig, HybridASRForCTC

    def make(**changes) -> HybridASRForCTC:
        values = {
            "conv_dim": (8,) * 7,
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attn_heads": 2,
            "num_lact_heads": 2,
            "lact_fw_hidden_dim": 12,
            "encoder_target_ds_factor": 8,
            "enable_ttt": True,
            "ttt_mask_length": 3,
        }
        torch.manual_seed(3)
        model = HybridASRForCTC(HybridASRConfig(**{**values, **changes})).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        with torch.no_grad():
            model.ctc_head.weight *= 1.2
            model.ctc_head.bias[:5] = torch.tensor([0.8, -30.0, -30.0, -30.0, 1.5])  # the blank, special tokens, |
        return model

    return make
