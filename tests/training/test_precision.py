"""Which precision training runs in is the user's to say, accelerate's configuration's, or the device's."""

import pytest
import torch

from lact_asr.errors import InputError
from lact_asr.training.arguments import parse_arguments
from lact_asr.training.run_setup import choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], None), (["--mixed_precision"], "auto"), (["--mixed_precision", "fp16"], "fp16"), (["--mixed_precision", "no"], "no")],
)  # fmt: skip
def test_the_flag_by_itself_or_with_a_format(flags, expected):
    arguments = parse_arguments(["--data_dir", "a", "--config_path", "b", "--output_dir", "c", *flags])
    assert arguments.mixed_precision == expected


@pytest.mark.parametrize(
    ("wanted", "device", "has_bf16", "expected"),
    [
        ("auto", CPU, False, "no"),
        ("auto", GPU, True, "bf16"),
        ("auto", GPU, False, "fp16"),
        ("bf16", CPU, False, "bf16"),
        ("fp16", GPU, True, "fp16"),
        ("no", GPU, True, "no"),
        (None, GPU, True, None),
    ],
)
def test_choice(monkeypatch, wanted, device, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert choose_precision(wanted, device) == expected


@pytest.mark.parametrize(("wanted", "device"), [("fp16", CPU), ("bf16", GPU)])
def test_what_the_device_lacks_is_refused(monkeypatch, wanted, device):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(InputError, match=f"--mixed_precision {wanted}"):
        choose_precision(wanted, device)


def test_bfloat16_trains_on_a_cpu_near_float32(train):
    """Weights stay in float32; only products are rounded."""
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0}
    losses = []
    for name, flags in (("whole", ()), ("half", ("--mixed_precision", "bf16"))):
        run = train("--max_steps", 2, *flags, name=name, **still)
        losses.append([event["ctc_loss"] for event in run.events("train")])
        assert all(weight.dtype == torch.float32 for weight in run.state()["model"].values())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("orders", [(), ("--ttt_first_order",)], ids=["second derivatives", "first order"])
def test_meta_training_in_bfloat16_is_near_float32(train, orders):
    """Its inner step differentiates inside of autocast, through the fast weights' own backward passes."""
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0}
    meta = ("--ttt_training", "meta", "--ttt_loss_type", "entropy", "--ttt_parameters", "norms,front_end,fast_weights")
    losses = []
    for name, flags in (("whole", ()), ("half", ("--mixed_precision", "bf16"))):
        run = train("--max_steps", 2, *meta, *orders, *flags, name=name, **still)
        losses.append([event["ctc_loss_after"] for event in run.events("train")])
        assert run.events("train")[-1]["skipped_steps"] == 0
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
