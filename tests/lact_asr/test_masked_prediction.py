"""The masked-prediction loss against one written out frame by frame."""

from __future__ import annotations

import math

import pytest
import torch

from lact_asr.masked_prediction import MaskedPredictionHead

HIDDEN = 16


@pytest.fixture
def head(tiny_config) -> MaskedPredictionHead:
    head = MaskedPredictionHead(tiny_config(enable_ttt=True)).double()
    torch.nn.init.normal_(head.mask_embedding)
    return head


def literal_loss(head: MaskedPredictionHead, student, teacher, masked_frames) -> float:
    total, count = 0.0, 0
    for row, time in masked_frames.nonzero().tolist():
        target = teacher[row, time].tolist()
        mean = sum(target) / HIDDEN
        scale = math.sqrt(sum((value - mean) ** 2 for value in target) / HIDDEN + 1e-5)
        predicted = head.predictor(student[row, time]).tolist()
        total += sum((mine - (value - mean) / scale) ** 2 for mine, value in zip(predicted, target, strict=True))
        count += HIDDEN
    return total / count


def test_equals_the_loss_frame_by_frame(head):
    student, teacher = torch.randn(2, 3, 7, HIDDEN, dtype=torch.float64)
    masked_frames = torch.rand(3, 7) < 0.4
    loss = head.loss(student, teacher, masked_frames)
    assert loss.dtype == torch.float32
    # 1e-5: the loss is summed in float32
    assert loss.item() == pytest.approx(literal_loss(head, student, teacher, masked_frames), rel=1e-5)


def test_no_gradient_through_the_teacher(head):
    student, teacher = torch.randn(2, 2, 5, HIDDEN, dtype=torch.float64).requires_grad_().unbind()
    student.retain_grad()
    teacher.retain_grad()
    head.loss(student, teacher, torch.ones(2, 5, dtype=torch.bool)).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_unmasked_frames_have_no_part_in_it(head):
    student, teacher = torch.randn(2, 1, 6, HIDDEN, dtype=torch.float64)
    masked_frames = torch.tensor([[False, True, True, False, False, True]])
    expected = head.loss(student, teacher, masked_frames)
    student, teacher = (tensor.masked_fill(~masked_frames[..., None], math.nan) for tensor in (student, teacher))
    assert torch.equal(head.loss(student, teacher, masked_frames), expected)


def test_no_masked_frame_gives_zero_with_a_gradient(head):
    student = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    loss = head.loss(student, torch.randn(2, 5, HIDDEN), torch.zeros(2, 5, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert not student.grad.any()
    assert all(not parameter.grad.any() for parameter in head.predictor.parameters())
