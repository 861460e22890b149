"""The schedule's values and the optimiser's parameter groups."""

from itertools import pairwise

import pytest
import torch

from lact_asr import HybridASRConfig, HybridASRForCTC
from lact_asr.fast_weight_ops import newton_schulz
from lact_asr.training.optimization import make_optimizer, make_scheduler, parameter_groups, schedule_factor

PEAK_LR = 2e-3


@pytest.fixture
def model():
    return make_model()


def make_model(**changes) -> HybridASRForCTC:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attn_heads": 2, "num_lact_heads": 2}
    return HybridASRForCTC(
        HybridASRConfig(
            conv_dim=(8,) * 7, num_hidden_layers=1, lact_fw_hidden_dim=8, enable_ttt=True, **sizes, **changes
        )
    )


@pytest.mark.parametrize(("warmup", "total"), [(100, 1000), (1, 2), (10_000, 250_000), (37, 91)])
def test_schedule_starts_at_a_tenth_peaks_after_warmup_and_ends_at_a_hundredth(warmup, total):
    assert schedule_factor(0, warmup, total) == pytest.approx(0.10)
    assert schedule_factor(warmup, warmup, total) == pytest.approx(1.0)
    assert schedule_factor(total, warmup, total) == pytest.approx(0.01)
    assert schedule_factor(10 * total, warmup, total) == pytest.approx(0.01)


def test_schedule_rises_linearly_then_falls_as_a_cosine():
    factors = [schedule_factor(step, 40, 240) for step in range(241)]
    rises = [after - before for before, after in pairwise(factors[:41])]
    assert rises == pytest.approx([0.9 / 40] * 40)
    assert all(after < before for before, after in pairwise(factors[40:]))
    assert factors[140] == pytest.approx((1.0 + 0.01) / 2)  # half-way down
    assert factors[40] - factors[41] < factors[140] - factors[141] > factors[239] - factors[240]


def test_schedule_without_warmup_and_with_warmup_beyond_the_end():
    assert schedule_factor(0, 0, 10) == 1.0
    assert schedule_factor(10, 0, 10) == pytest.approx(0.01)
    assert [schedule_factor(step, 100, 10) for step in (0, 10)] == pytest.approx([0.1, 0.19])


def test_every_trainable_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model, PEAK_LR, 0.1, 0.01)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert [group["name"] for group in groups] == [
        "encoder", "encoder_no_decay", "transformer", "transformer_no_decay",
    ]  # fmt: skip


def test_groups_have_the_rates_of_their_parts_and_decay_matrices_only(model):
    groups = {group["name"]: group for group in parameter_groups(model, PEAK_LR, 0.1, 0.03)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for title, group in groups.items():
        encoder, decayed = title.startswith("encoder"), not title.endswith("no_decay")
        assert group["lr"] == pytest.approx(PEAK_LR * (0.1 if encoder else 1.0))
        assert group["weight_decay"] == (0.03 if decayed else 0.0)
        for parameter in group["params"]:
            assert names[id(parameter)].startswith("front_end.") == encoder
            assert (parameter.ndim > 1) == decayed
    undecayed = {names[id(parameter)] for parameter in groups["transformer_no_decay"]["params"]}
    assert {"final_norm.weight", "ctc_head.bias", "masked_prediction.mask_embedding"} <= undecayed
    decayed = {names[id(parameter)] for parameter in groups["transformer"]["params"]}
    assert {"blocks.0.layer.fast_weights.w0", "ctc_head.weight"} <= decayed


def test_frozen_parameters_are_left_out():
    model = make_model(freeze_encoder=True)
    groups = parameter_groups(model, PEAK_LR, 0.1, 0.01)
    assert [group["name"] for group in groups] == ["transformer", "transformer_no_decay"]
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(p) for name, p in model.named_parameters() if not name.startswith("front_end.")}


def test_scheduler_moves_the_rates_of_all_groups_together(model):
    optimizer = make_optimizer(parameter_groups(model, PEAK_LR, 0.1, 0.01))
    scheduler = make_scheduler(optimizer, warmup_steps=2, total_steps=6)
    for step in range(8):
        factor = schedule_factor(step, 2, 6)
        for group in optimizer.param_groups:
            peak = PEAK_LR * (0.1 if group["name"].startswith("encoder") else 1.0)
            assert group["lr"] == pytest.approx(peak * factor)
        optimizer.step()
        scheduler.step()


def test_weight_decay_shrinks_matrices_and_leaves_vectors(model):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(parameter_groups(model, PEAK_LR, 0.5, 0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = PEAK_LR * (0.5 if name.startswith("front_end.") else 1.0)
        shrunk = before[name] * (1 - 0.1 * rate) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), shrunk, rtol=1e-6, atol=0)


def test_muon_takes_the_matrices_between_front_end_and_output_and_nothing_else(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, PEAK_LR, 0.1, 0.01, muon=True)
    assert sum(len(group["params"]) for group in groups) == len(names)
    muon = {names[id(p)]: p for group in groups if group["muon"] for p in group["params"]}
    layer = {f"layer.{name}.weight" for name in ("qkv", "learning_rate_proj", "fast_gate", "output")}
    layer |= {f"layer.fast_weights.{name}" for name in ("w0", "w1", "w2")}
    assert set(muon) == {
        "feature_projection.weight", "masked_prediction.predictor.0.weight", "masked_prediction.predictor.2.weight",
        *(f"blocks.0.{name}" for name in (*layer, "feed_forward.1.weight", "feed_forward.4.weight")),
    }  # fmt: skip
    assert [group["name"] for group in groups if group["muon"]] == ["transformer_muon"]


def test_muons_step_is_its_equation_for_matrices_and_adamws_for_vectors():
    generator = torch.Generator().manual_seed(0)
    matrices, vector = torch.randn(3, 4, 6, generator=generator), torch.randn(5, generator=generator)
    mine = [torch.nn.Parameter(tensor.clone()) for tensor in (matrices, vector)]
    other = torch.nn.Parameter(vector.clone())
    settings = {"lr": 0.1, "weight_decay": 0.02}
    optimizer = make_optimizer(
        [{"params": [mine[0]], "muon": True, **settings}, {"params": [mine[1]], "muon": False, **settings}]
    )
    adamw = torch.optim.AdamW([other], betas=(0.9, 0.98), eps=1e-8, **settings)
    momentum, expected = torch.zeros_like(matrices), matrices.double()
    for _ in range(3):
        gradient, of_vector = torch.randn(3, 4, 6, generator=generator), torch.randn(5, generator=generator)
        mine[0].grad, mine[1].grad, other.grad = gradient.clone(), of_vector.clone(), of_vector.clone()
        optimizer.step()
        adamw.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = newton_schulz((0.05 * gradient + 0.95 * momentum).double())
        expected = (1 - 0.1 * 0.02) * expected - 0.1 * 0.2 * 6**0.5 * update
    assert torch.allclose(mine[0].double(), expected, atol=1e-5)
    assert torch.equal(mine[1], other)


def test_muon_goes_on_from_its_saved_state():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(4, 6, 6, generator=generator)

    def run(parameter, optimizer, chosen) -> None:
        for gradient in chosen:
            parameter.grad = gradient.clone()
            optimizer.step()

    def fresh(values):
        parameter = torch.nn.Parameter(values.clone())
        return parameter, make_optimizer([{"params": [parameter], "muon": True, "lr": 0.1}])

    whole = fresh(torch.ones(6, 6))
    run(*whole, gradients)
    first = fresh(torch.ones(6, 6))
    run(*first, gradients[:2])
    second = fresh(first[0].detach())
    second[1].load_state_dict(first[1].state_dict())
    run(*second, gradients[2:])
    assert torch.equal(whole[0], second[0])
