"""Losses by name: how sums are written, which passes they share, and what they need of a model."""

from __future__ import annotations

import pytest
import torch

from lact_asr.errors import InputError
from lact_asr.inference.ttt.losses import OBJECTIVES, WeightedSum
from lact_asr.inference.ttt.views import Rows, StepView, draw_row_masks
from lact_asr.inference.ttt_procedure import TestTimeTrainer, TTTSettings
from lact_asr.ttt_names import LOSSES


def test_every_name_has_its_objective():
    assert list(LOSSES) == list(OBJECTIVES)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("entropy", [(1.0, "entropy")]),
        ("masked_prediction+0.3*entropy", [(1.0, "masked_prediction"), (0.3, "entropy")]),
        (" 2 * tent + .5*consistency ", [(2.0, "tent"), (0.5, "consistency")]),
    ],
)
def test_sums_as_they_are_written(text, weights):
    assert WeightedSum.parse(text).terms == tuple((weight, OBJECTIVES[name]) for weight, name in weights)


def make_view(model, audio: torch.Tensor, lengths: list[int]) -> StepView:
    with torch.no_grad():
        before = model(audio, output_hidden_states=True)
    generators = [torch.Generator().manual_seed(3) for _ in lengths]
    frames = before.logits.shape[1]
    return StepView(
        model, Rows(audio, None, lengths), before.hidden_states[-1],
        lambda: draw_row_masks(lengths, frames, 0.3, 3, generators, "cpu"), blank_id=0,
    )  # fmt: skip


def test_a_sum_is_the_sum_and_its_parts_share_passes(speaking_model, monkeypatch):
    model, audio = speaking_model().eval(), torch.randn(2, 8_000)
    frames = model(audio).logits.shape[1]
    parts = [("masked_prediction", 1.0), ("entropy", 0.3), ("tent", 2.0), ("consistency", 0.5)]
    expected = sum(weight * OBJECTIVES[name].losses(make_view(model, audio, [frames] * 2)) for name, weight in parts)
    view = make_view(model, audio, [frames] * 2)
    passes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: passes.append(kwargs) or forward(*args, **kwargs))
    found = WeightedSum.parse("masked_prediction+0.3*entropy+2*tent+0.5*consistency").losses(view)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2,)
    plain = [kwargs for kwargs in passes if kwargs.get("masked_frames") is None]
    assert len(plain) == 1, "entropy and tent look at one pass"
    assert len(passes) == 3, "consistency runs two more"


def test_losses_of_features_and_of_logits_share_a_pass(speaking_model, monkeypatch):
    model, audio = speaking_model().eval(), torch.randn(1, 8_000)
    view = make_view(model, audio, [model(audio).logits.shape[1]])
    passes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: passes.append(kwargs) or forward(*args, **kwargs))
    found = WeightedSum.parse("tent+2*coherent_entropy").losses(view)
    assert len(passes) == 1
    expected = [OBJECTIVES[name].losses(view) for name in ("tent", "coherent_entropy")]
    torch.testing.assert_close(found, expected[0] + 2 * expected[1])


def test_each_row_draws_the_masks_that_it_draws_alone():
    def masks(lengths: list[int]) -> list[torch.Tensor]:
        generators = [torch.Generator().manual_seed(1) for _ in lengths]
        return [draw_row_masks(lengths, 40, 0.3, 3, generators, "cpu") for _ in range(2)]

    together, alone = masks([40, 25]), masks([25])
    for mine, expected in zip(together, alone, strict=True):
        assert torch.equal(mine[1:], expected)
    assert not torch.equal(together[0], together[1])


def test_losses_see_the_real_frames_of_a_row_only(speaking_model):
    model, audio = speaking_model().eval(), torch.randn(1, 8_000)
    frames = model(audio).logits.shape[1]
    for name in ("entropy", "tent", "class_confusion", "generalised_entropy"):
        view = make_view(model, audio, [frames - 4])
        cut = make_view(model, audio, [frames])
        cut.__dict__["logits"] = [cut.logits[0][:-4]]
        torch.testing.assert_close(OBJECTIVES[name].losses(view), OBJECTIVES[name].losses(cut))


def test_models_that_cannot_hide_frames_say_so(transformers_model):
    with pytest.raises(InputError, match="Wav2Vec2ForCTC cannot hide frames"):
        TestTimeTrainer(transformers_model("wav2vec2"), TTTSettings(loss_type="tent+consistency"))
