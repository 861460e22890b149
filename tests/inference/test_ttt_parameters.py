"""What the groups select in every family of models, and that borrowed parameters come back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)

from lact_asr.errors import InputError
from lact_asr.inference.ttt_parameters import PARAMETER_GROUPS, borrowed, select_parameters

FAMILIES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC),
    "hubert": (HubertConfig, HubertForCTC),
    "wavlm": (WavLMConfig, WavLMForCTC),
    "data2vec": (Data2VecAudioConfig, Data2VecAudioForCTC),
}


def transformers_model(family: str, **changes) -> nn.Module:
    config_class, model_class = FAMILIES[family]
    values = {
        "conv_dim": (8,) * 7,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "conv_pos_kernel_size": 3,
        "vocab_size": 8,
    }
    return model_class(config_class(**{**values, **changes})).eval()


def test_groups_of_the_hybrid_model(speaking_model):
    model = speaking_model(num_hidden_layers=1)
    names = {group: set(select_parameters(model, (group,))) for group in PARAMETER_GROUPS}
    assert names["output"] == {"ctc_head.weight", "ctc_head.bias"}
    assert names["fast_weights"] == {f"blocks.0.layer.fast_weights.{part}" for part in ("w0", "w1", "w2")}
    assert names["front_end"] == {name for name, _ in model.named_parameters() if name.startswith("front_end.")}
    assert {"final_norm.weight", "blocks.0.layer_norm.bias", "blocks.0.layer.fast_norm.weight"} <= names["norms"]
    assert {"blocks.0.feed_forward.0.weight", "feature_norm.weight"} <= names["norms"]
    assert not any(model.get_parameter(name).ndim > 1 for name in names["norms"])
    assert "blocks.0.feed_forward.1.bias" not in names["norms"]
    assert not any(name.startswith("masked_prediction") for group in names.values() for name in group)


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_transformers_models(family):
    model = transformers_model(family)
    names = {group: set(select_parameters(model, (group,))) for group in ("norms", "front_end", "output")}
    assert names["output"] == {"lm_head.weight", "lm_head.bias"}
    base = model.base_model_prefix
    prefix = f"{base}.feature_extractor."
    assert names["front_end"] == {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    assert len(names["front_end"]) >= 7
    every_norm = {name for name, _ in model.named_parameters() if "layer_norm" in name}
    assert f"{base}.encoder.layers.0.final_layer_norm.weight" in every_norm
    assert names["norms"] == every_norm
    with pytest.raises(InputError, match="has no parameters in the group 'fast_weights'"):
        select_parameters(model, ("norms", "fast_weights"))


def test_groups_add_up_without_doubling(speaking_model):
    model = speaking_model()
    both = select_parameters(model, ("norms", "front_end", "norms"))
    assert set(both) == set(select_parameters(model, ("norms",))) | set(select_parameters(model, ("front_end",)))
    assert len({id(parameter) for parameter in both.values()}) == len(both)
    for name, parameter in both.items():
        assert model.get_parameter(name) is parameter


def test_unknown_group_names_the_choices(speaking_model):
    with pytest.raises(InputError, match=r"'everything'.*fast_weights, norms, front_end, output"):
        select_parameters(speaking_model(), ("everything",))


@pytest.fixture
def lent(speaking_model):
    """A model in mixed modes, with gradients and frozen parts, and a deep copy of all that must come back."""
    model = speaking_model(num_hidden_layers=1)
    model.train()
    model.blocks[0].eval()
    model.front_end.requires_grad_(False)
    for number, parameter in enumerate(model.blocks.parameters()):
        parameter.grad = torch.full_like(parameter, float(number)) if number % 2 else None
    before = {
        "values": copy.deepcopy(model.state_dict()),
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "gradient_values": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
    }
    return model, before


def assert_given_back(model: nn.Module, before: dict) -> None:
    assert all(torch.equal(value, before["values"][name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == before["flags"]
    assert [module.training for module in model.modules()] == before["modes"]
    for parameter, gradient, values in zip(
        model.parameters(), before["gradients"], before["gradient_values"], strict=True
    ):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, values)


def spoil(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """What adaptation does, and worse."""
    model(torch.randn(1, 3_000)).logits.sum().backward()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(float("nan"))
    torch.rand(3)


@pytest.mark.parametrize("raises", [False, True])
def test_everything_comes_back(lent, raises):
    model, before = lent
    parameters = select_parameters(model, ("norms", "front_end"))
    random_state = torch.get_rng_state()
    try:
        with borrowed(model, parameters):
            spoil(model, parameters)
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert raises
    assert_given_back(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_inside_only_the_chosen_ones_learn(lent):
    model, _ = lent
    parameters = select_parameters(model, ("front_end",))  # frozen before
    with borrowed(model, parameters):
        assert not any(module.training for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
        model(torch.randn(1, 3_000)).logits.sum().backward()
        learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == set(parameters)
