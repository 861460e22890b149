"""Gradient checkpointing and compilation change what a step costs and nothing that it computes."""

import copy
import os

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from lact_asr import HybridASRConfig, HybridASRForCTC
from lact_asr.fast_weight_ops import BACKEND_VARIABLE
from lact_asr.training.block_options import checkpoint_activations, compile_in_place
from lact_asr.wav2vec2_encoder import FrontEndLayer

STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0}
RANDOM = {
    "hidden_dropout": 0.2,
    "attention_dropout": 0.2,
    "layerdrop": 0.3,
    "mask_time_prob": 0.2,
    "mask_time_length": 2,
}


def make_model(**changes) -> HybridASRForCTC:
    values = {
        "conv_dim": [16] * 7, "encoder_target_ds_factor": 8, "num_hidden_layers": 2, "hidden_size": 32,
        "intermediate_size": 48, "num_attn_heads": 2, "num_lact_heads": 2, "lact_fw_hidden_dim": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    return HybridASRForCTC(HybridASRConfig(**{**values, **changes})).train()


def loss_and_gradients(model: HybridASRForCTC, samples: int = 8_000) -> dict[str, torch.Tensor]:
    """Of two ragged rows, from a fixed state of the random generator."""
    audio = torch.sin(torch.arange(2 * samples) ** 1.1).view(2, samples)
    mask = torch.ones_like(audio, dtype=torch.int64)
    mask[1, samples // 2 :] = 0
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(audio, attention_mask=mask, labels=torch.tensor([[5, 6, 7], [8, -100, -100]])).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("changes", [STILL, RANDOM, {"lact_chunk_size": 6, "use_momentum": True}], ids=["still", "random", "chunks"])  # fmt: skip
def test_checkpointing_gives_the_same_loss_and_gradients(changes):
    model = make_model(**changes)
    expected = loss_and_gradients(model)
    checkpoint_activations(model)
    actual = loss_and_gradients(model)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.slow
def test_checkpointing_gives_the_same_through_the_kernels_own_derivatives(monkeypatch):
    pytest.importorskip("triton", reason="the package triton is not installed: pip install lact-asr[triton]")
    monkeypatch.setenv(BACKEND_VARIABLE, "triton")
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_lact_heads": 1, "lact_fw_hidden_dim": 12}
    model = make_model(**STILL, **small)
    expected = loss_and_gradients(model, samples=1_600)
    checkpoint_activations(model)
    for name, value in loss_and_gradients(model, samples=1_600).items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_layers_are_computed_again_in_the_backward_pass_only(monkeypatch):
    model, calls = make_model(**STILL), []
    original = FrontEndLayer.convolve
    monkeypatch.setattr(FrontEndLayer, "convolve", lambda self, hidden: calls.append(self) or original(self, hidden))
    loss_and_gradients(model)
    assert len(calls) == 7
    calls.clear()
    checkpoint_activations(model)
    loss_and_gradients(model)
    assert len(calls) == 14
    calls.clear()
    model.eval()(torch.randn(1, 4_000)).logits.sum().backward()
    assert len(calls) == 7


def test_the_training_command_with_checkpointing_learns_the_same(train):
    flags = ("--max_steps", 2, "--enable_ttt")
    plain, sparing = train(*flags, name="plain"), train(*flags, "--gradient_checkpointing", name="sparing")
    for name, value in plain.state()["model"].items():
        assert torch.equal(sparing.state()["model"][name], value), name


@pytest.mark.parametrize("flag", ["--gradient_checkpointing", "--compile"])
def test_training_through_a_step_refuses_both(train, flag):
    run = train("--ttt_training", "meta", "--ttt_loss_type", "entropy", "--ttt_steps", 1, flag)
    assert run.exit_code == 2
    assert f"{flag} cannot be combined with --ttt_training meta" in run.err


BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(
            os.environ.get("LACT_ASR_TEST_INDUCTOR") != "1",
            reason="generating code takes more than a minute of one core: LACT_ASR_TEST_INDUCTOR=1",
        ),
    ),
]


@pytest.fixture
def compiler():
    """Without anything compiled before; gives the number of programs since."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def compare_compiled(backend: str, samples: list[int], checkpointed: bool = False, tolerance: float = 2e-3) -> None:
    model = make_model(**STILL, num_hidden_layers=2, window_size=8)
    compiled = copy.deepcopy(model)
    if checkpointed:
        checkpoint_activations(compiled)
    compile_in_place([compiled.front_end, *compiled.blocks], backend)
    assert compiled.state_dict().keys() == model.state_dict().keys()
    for number in samples:
        expected, actual = loss_and_gradients(model, number), loss_and_gradients(compiled, number)
        for name, value in expected.items():
            assert (actual[name] - value).norm() <= tolerance * value.norm() + 1e-6, (number, name)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_modules_give_the_same_at_any_length_from_one_compilation_a_mask(backend, compiler):
    short, long = [16_000, 20_000, 18_765], [40_000, 50_000]  # the window goes by blocks from 81 frames on
    compare_compiled(backend, short)
    assert compiler() == 2, "one program of the front end, one that all blocks share"
    compare_compiled(backend, [*long, *short])
    assert compiler() == 3, "and one for windows by blocks"


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_and_checkpointed_modules_give_the_same(backend, compiler):
    compare_compiled(backend, [16_000, 20_000], checkpointed=True)
    assert compiler() == 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_modules_give_much_the_same_in_16_bits(backend, compiler):
    with torch.autocast("cpu", torch.bfloat16):
        compare_compiled(backend, [16_000, 20_000], tolerance=0.5)  # random weights: up to 0.17 by rounding alone
    assert compiler() == 2
