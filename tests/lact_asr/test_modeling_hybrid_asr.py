"""The hybrid model: what it returns, gradients, padding, losses, precision, files, and streaming."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCTC, AutoProcessor

from lact_asr import HybridASRConfig, HybridASRForCTC, HybridASRProcessor
from lact_asr.wav2vec2_encoder import frames_mask

VARIANTS = {
    "default": {},
    "group norm": {"feat_extract_norm": "group", "conv_bias": False},
    "window": {"window_size": 5},
    "chunks": {"lact_chunk_size": 6},
    "chunks with momentum": {"lact_chunk_size": 8, "use_momentum": True},
    "chunks with momentum, applied first, window, group norm": {
        "lact_chunk_size": 12,
        "use_momentum": True,
        "lact_update_order": "apply_then_update",
        "window_size": 9,
        "feat_extract_norm": "group",
    },
    "low rank": {"w0_w2_low_rank": 3, "lact_chunk_size": 6},
    "one head": {"num_lact_heads": 1, "lact_chunk_size": 6},
    "plain gradient ascent": {"use_muon": False, "fast_weight_lr_init": 0.5, "lact_chunk_size": 6},
    "with predictor": {"enable_ttt": True},
}


def padded(rows: list[torch.Tensor], width: int | None = None, fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths -> (input_values, attention_mask)."""
    width = width or max(map(len, rows))
    batch, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        batch[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return batch, mask


def random_audio(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(length, generator=generator) for length in lengths]


# What comes out


@torch.no_grad()
def test_outputs_have_the_documented_shapes(tiny_model):
    model = tiny_model(num_hidden_layers=3)
    audio, mask = padded(random_audio(5_000, 2_600))
    output = model(audio, attention_mask=mask, output_hidden_states=True)
    frames = (5_000 - 400) // 200 + 1
    assert output.logits.shape == (2, frames, 9)
    assert output.frame_lengths.tolist() == [frames, (2_600 - 400) // 200 + 1]
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, frames, 16)] * 4
    spoken = frames_mask(output.frame_lengths, frames)
    torch.testing.assert_close(model.ctc_head(output.hidden_states[-1])[spoken], output.logits[spoken])
    assert (output.logits[~spoken].argmax(-1) == model.config.ctc_blank_id).all()
    assert len(output.fast_weights) == 3
    assert [tuple(weight.shape) for weight in output.fast_weights[0].weights] == [
        (2, 2, 12, 8),
        (2, 2, 8, 12),
        (2, 2, 12, 8),
    ]
    assert output.loss is None
    assert model(audio).hidden_states is None


@torch.no_grad()
@pytest.mark.parametrize("factor", [1, 5, 8])
def test_frame_lengths_are_those_of_the_logits(factor, tiny_model):
    model = tiny_model(encoder_target_ds_factor=factor, num_hidden_layers=1)
    lengths = [400, 401, 440, 799, 800, 1_737, 3_000]
    expected = [model(torch.randn(1, length)).logits.shape[1] for length in lengths]
    assert model.frame_lengths(torch.tensor(lengths)).tolist() == expected
    assert model.frame_lengths(torch.tensor([0, 399])).tolist() == [0, 0]


@torch.no_grad()
def test_a_mask_of_ones_changes_nothing(tiny_model):
    model, audio = tiny_model(), torch.randn(2, 3_000)
    with_mask = model(audio, attention_mask=torch.ones(2, 3_000, dtype=torch.bool)).logits
    torch.testing.assert_close(with_mask, model(audio).logits, atol=1e-6, rtol=0)  # float32 rounding


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_audio_shorter_than_a_frame_is_refused(num_samples, tiny_model):
    with pytest.raises(ValueError, match="less than one frame"):
        tiny_model()(torch.zeros(2, num_samples))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_without_a_single_frame_stay_finite(variant, tiny_model):
    audio, mask = padded(random_audio(2_000, 300, 0))
    output = tiny_model(**VARIANTS[variant])(
        audio, attention_mask=mask, labels=torch.tensor([[1, 2], [3, -100], [4, 5]])
    )
    assert output.frame_lengths.tolist() == [9, 0, 0]
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.loss)


@torch.no_grad()
def test_masked_frames_are_hidden(tiny_model):
    """A hidden frame's audio has no part in the result; with a predictor its embedding stands in."""
    for model in (tiny_model(), tiny_model(enable_ttt=True)):
        masked_frames = torch.zeros(1, 13, dtype=torch.bool)
        masked_frames[:, 4:8] = True
        audio = torch.randn(1, 2_800)
        other = audio.clone()
        other[:, 200 * 4 + 200 : 200 * 7 + 200] += 1.0  # seen by frames 4 to 7 alone
        torch.testing.assert_close(
            model(audio, masked_frames=masked_frames).logits, model(other, masked_frames=masked_frames).logits
        )
        assert (model(audio).logits - model(other).logits).abs().max() > 1e-2
        assert (model(audio).logits - model(audio, masked_frames=masked_frames).logits).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{"hidden_dropout": 0.5}, {"mask_time_prob": 0.5, "mask_time_length": 3}, {"mask_feature_prob": 0.5, "mask_feature_length": 2},
     {"layerdrop": 0.9}, {"enable_ttt": True, "ttt_mask_prob": 0.5}],
    ids=str,
)  # fmt: skip
def test_randomness_is_for_training_only(changes, tiny_model):
    model, audio = tiny_model(**changes), torch.randn(1, 4_000)
    assert torch.equal(model(audio).logits, model(audio).logits)
    model.train()
    assert any(not torch.equal(model(audio).logits, model(audio).logits) for _ in range(8))


# Padding


@torch.no_grad()
@pytest.mark.parametrize("fill", [0.0, 1e3, math.nan])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_no_row(variant, fill, tiny_model):
    """1e-4 is the promise; float32 rounding is some 1e-5 here, and a mistake in masking more than 1e-2.

    Rounding grows where chunks have fewer frames than a head has dimensions: Newton-Schulz then amplifies what should be
    zero some 500 times. Such chunks are compared in float64, where a tolerance can be tight, in test_lact_layer.py.
    """
    model = tiny_model(**VARIANTS[variant])
    rows = random_audio(5_000, 400, 2_345, 1_200, 4_999)
    audio, mask = padded(rows, 5_300, fill)
    output = model(audio, attention_mask=mask)
    for index, row in enumerate(rows):
        alone = model(row[None])
        assert output.frame_lengths[index] == alone.logits.shape[1]
        torch.testing.assert_close(output.logits[index, : alone.logits.shape[1]], alone.logits[0], atol=1e-4, rtol=0)
        for together, single in zip(output.fast_weights, alone.fast_weights, strict=True):
            for mine, other in zip(together.weights, single.weights, strict=True):
                torch.testing.assert_close(mine[index], other[0], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_padding_changes_no_row_of_a_deeper_model(norm, tiny_model):
    model = tiny_model(
        feat_extract_norm=norm, conv_dim=(32,) * 7, num_hidden_layers=6, hidden_size=64, intermediate_size=128,
        num_attn_heads=4, num_lact_heads=4, lact_fw_hidden_dim=96, lact_chunk_size=16, use_momentum=True, window_size=21,
        encoder_target_ds_factor=3,
    )  # fmt: skip
    rows = random_audio(8_000, 3_100, 5_555)
    output = model(padded(rows, fill=7.0)[0], attention_mask=padded(rows)[1])
    assert output.logits.std() > 0.1, "logits of nothing would pass"
    for index, row in enumerate(rows):
        alone = model(row[None]).logits[0]
        torch.testing.assert_close(output.logits[index, : len(alone)], alone, atol=1e-4, rtol=0)


# Losses


def test_ctc_loss_is_the_mean_over_rows_of_torchs_own(tiny_model):
    model = tiny_model()
    audio, mask = padded(random_audio(5_000, 3_000, 2_000))
    labels = torch.tensor([[3, 4, 4, 5, 8], [1, 2, -100, -100, -100], [7, -100, -100, -100, -100]])
    output = model(audio, attention_mask=mask, labels=labels)
    losses = []
    for logits, length, row in zip(output.logits, output.frame_lengths, labels, strict=True):
        target = row[row >= 0]
        log_probs = functional.log_softmax(logits[:length], dim=-1)
        losses.append(functional.ctc_loss(log_probs, target, length[None], torch.tensor([len(target)])))
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    assert torch.equal(output.loss, output.ctc_loss)


def test_ctc_loss_equals_the_sum_over_all_alignments(tiny_model):
    """Enumerated for the three frames of 800 samples and the label sequence (2, 5)."""
    model, audio = tiny_model(), torch.randn(1, 800)
    output = model(audio, labels=torch.tensor([[2, 5, -100]]))
    probabilities = output.logits[0].softmax(-1)
    assert len(probabilities) == 3
    alignments = [(2, 5, 0), (2, 0, 5), (0, 2, 5), (2, 2, 5), (2, 5, 5)]
    total = sum(probabilities[0, a] * probabilities[1, b] * probabilities[2, c] for a, b, c in alignments)
    assert output.loss.item() == pytest.approx(-total.log().item() / 2, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_a_batch_is_the_mean_of_its_rows(variant, tiny_model):
    """In training mode, without dropout and with given masks: what accumulation over batches relies on."""
    model = tiny_model(**VARIANTS[variant]).train()
    rows = random_audio(4_000, 3_000, 1_700)
    labels = torch.tensor([[3, 4, 5], [1, 2, 2], [7, -100, -100]])
    audio, mask = padded(rows, fill=100.0)
    masked_frames = torch.rand(3, int(model.frame_lengths(torch.tensor(4_000)))) < 0.3
    masked_frames[:, 2] = True
    output = model(audio, attention_mask=mask, labels=labels, masked_frames=masked_frames)
    alone = [
        model(row[None], labels=label[None], masked_frames=masked[None, : int(model.frame_lengths(torch.tensor(len(row))))])
        for row, label, masked in zip(rows, labels, masked_frames, strict=True)
    ]  # fmt: skip
    expected = torch.stack([single.ctc_loss for single in alone]).mean()
    torch.testing.assert_close(output.ctc_loss, expected, atol=1e-4, rtol=0)
    if model.masked_prediction is not None:
        lengths = model.frame_lengths(torch.tensor([len(row) for row in rows]))
        counts = [int(masked[:length].sum()) for masked, length in zip(masked_frames, lengths, strict=True)]
        parts = [single.ttt_loss * count for single, count in zip(alone, counts, strict=True)]
        torch.testing.assert_close(output.ttt_loss, sum(parts) / sum(counts), atol=1e-4, rtol=0)
        torch.testing.assert_close(output.loss, output.ctc_loss + 0.5 * output.ttt_loss)


def test_labels_that_do_not_fit_their_frames_give_zero_not_infinity(tiny_model):
    model = tiny_model()
    output = model(torch.randn(1, 600), labels=torch.tensor([[1, 2, 3, 4, 5]]))
    assert output.loss.item() == 0
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_rows_without_labels(tiny_model):
    model, audio = tiny_model(), torch.randn(2, 2_000)
    nothing = model(audio, labels=torch.empty(2, 0, dtype=torch.int64)).loss
    expected = -model(audio).logits.log_softmax(-1)[..., 0].sum(1).mean()  # every frame blank
    torch.testing.assert_close(nothing, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model(audio, labels=torch.full((2, 3), -100)).loss, expected, atol=1e-4, rtol=1e-5)


def test_labels_outside_the_vocabulary_are_refused(tiny_model):
    with pytest.raises(ValueError, match="Label 9 is outside the vocabulary of 9"):
        tiny_model()(torch.randn(1, 2_000), labels=torch.tensor([[1, 9]]))


def test_masked_prediction_losses_are_those_of_two_passes(tiny_model):
    model = tiny_model(enable_ttt=True)
    audio, mask = padded(random_audio(4_000, 2_000), fill=50.0)
    masked_frames = torch.rand(2, 19) < 0.4  # the second row has 9 frames: some of these lie in its padding
    losses = model.masked_prediction_losses(audio, mask, masked_frames)
    with torch.no_grad():
        teacher = model(audio, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    output = model(audio, attention_mask=mask, masked_frames=masked_frames, output_hidden_states=True)
    real_and_masked = masked_frames & (torch.arange(19) < torch.tensor([[19], [9]]))
    student = output.hidden_states[-1]
    expected = [
        model.masked_prediction.loss(*(t[i : i + 1] for t in (student, teacher, real_and_masked))) for i in (0, 1)
    ]
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-6, rtol=1e-5)
    loss, expected = losses.sum(), sum(expected)
    # The teacher is cut off: gradients are those of the student's pass alone.
    parameters = [parameter for name, parameter in model.named_parameters() if not name.startswith("ctc_head")]
    for mine, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_masked_prediction_with_a_given_teacher(tiny_model):
    """What test-time training does: the unmasked pass has been made already."""
    model, audio = tiny_model(enable_ttt=True), torch.randn(1, 3_000)
    masked_frames = torch.rand(1, 14) < 0.4
    teacher = model(audio, output_hidden_states=True).hidden_states[-1]
    loss = model.masked_prediction_losses(audio, None, masked_frames, teacher=teacher)
    torch.testing.assert_close(loss, model.masked_prediction_losses(audio, None, masked_frames))
    other = model.masked_prediction_losses(audio, None, masked_frames, teacher=teacher.flip(-1))
    assert (loss - other).abs() > 1e-3


def test_masked_prediction_without_a_masked_frame_is_zero(tiny_model):
    model = tiny_model(enable_ttt=True)
    loss = model.masked_prediction_losses(torch.randn(1, 2_000), None, torch.zeros(1, 9, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()


def test_masked_prediction_leaves_the_mode_as_it_was(tiny_model):
    model = tiny_model(enable_ttt=True)
    for training in (True, False):
        model.train(training)
        model.masked_prediction_losses(torch.randn(1, 2_000), None, torch.ones(1, 9, dtype=torch.bool))
        assert all(module.training == training for module in model.modules())


def test_a_model_without_predictor_says_so(tiny_model):
    with pytest.raises(ValueError, match="no masked-prediction head"):
        tiny_model().masked_prediction_losses(torch.randn(1, 2_000), None, torch.ones(1, 9, dtype=torch.bool))


# Gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant, tiny_model):
    # Momentum's decay first acts on the second update, and applied first that shows in the third chunk.
    changes = {**VARIANTS[variant], "enable_ttt": True, "ttt_mask_prob": 0.4, "lact_chunk_size": 5}
    model = tiny_model(**changes).train()
    audio, mask = padded(random_audio(4_000, 2_500), fill=math.nan)
    model(audio, attention_mask=mask, labels=torch.tensor([[1, 2, 3], [4, 5, -100]])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_reach_every_parameter_of_a_fresh_model(tiny_config):
    """As training starts: with the initial values of `HybridASRForCTC`, none of which may block a path."""
    model = HybridASRForCTC(
        tiny_config(enable_ttt=True, ttt_mask_prob=0.4, lact_chunk_size=5, use_momentum=True)
    ).train()
    audio, mask = padded(random_audio(4_000, 2_500))
    model(audio, attention_mask=mask, labels=torch.tensor([[1, 2, 3], [4, 5, -100]])).loss.backward()
    zero = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert zero == []


@pytest.mark.parametrize("rank", [-1, 4])
def test_initial_values(rank, tiny_config):
    """Fast weights have rows of length 1 on average, their gate is open, and learning rates start where they should."""
    model = HybridASRForCTC(tiny_config(hidden_size=64, lact_fw_hidden_dim=100, num_lact_heads=2, w0_w2_low_rank=rank))
    for block in model.blocks:
        for weight in block.layer.fast_weights():
            assert weight.square().sum(-1).mean().item() == pytest.approx(1, rel=0.3)  # a few hundred random rows
        assert torch.equal(block.layer.fast_gate.bias, torch.ones(2))
        assert torch.equal(block.layer.fast_norm.weight, torch.ones(32))
        rates = block.layer._learning_rates(torch.randn(1, 50, 64))
        assert rates.shape == (1, 2, 50, 3)
        assert rates.mean().item() == pytest.approx(0.01, rel=0.1)


def test_a_frozen_front_end_gets_no_gradients_and_everything_else_does(tiny_model):
    model = tiny_model(freeze_encoder=True).train()
    model(torch.randn(1, 3_000), labels=torch.tensor([[1, 2]])).loss.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("front_end.")
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name


def test_dropped_layers_give_no_gradients_and_break_nothing(tiny_model):
    model = tiny_model(layerdrop=0.999).train()
    output = model(torch.randn(1, 3_000), labels=torch.tensor([[1, 2]]))
    output.loss.backward()
    assert output.fast_weights == (None, None)
    assert all(parameter.grad is None for parameter in model.blocks.parameters())
    assert model.feature_projection.weight.grad.any()


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_is_finite_and_close(variant, dtype, tiny_model):
    changes = {"enable_ttt": True, "ttt_mask_prob": 0.4, **VARIANTS[variant]}
    model = tiny_model(**changes)
    audio, mask = padded(random_audio(4_000, 2_500), fill=math.nan)
    expected = model(audio, attention_mask=mask).logits.detach()
    with torch.autocast("cpu", dtype=dtype):
        logits = model(audio, attention_mask=mask).logits
        loss = model.train()(audio, attention_mask=mask, labels=torch.tensor([[1, 2, 3], [4, 5, -100]])).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    # 0.2 of the mean size: bfloat16 keeps 8 bits, and Newton-Schulz amplifies errors in small directions
    assert (logits.float() - expected).abs().mean() < 0.2 * expected.abs().mean()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_of_the_weights(dtype, tiny_model):
    model = tiny_model(lact_chunk_size=6, use_momentum=True)
    audio, mask = padded(random_audio(4_000, 2_500))
    expected = model(audio, attention_mask=mask).logits
    output = model.to(dtype)(audio, attention_mask=mask, labels=torch.tensor([[1, 2, 3], [4, 5, -100]]))
    assert output.logits.dtype == dtype
    assert torch.isfinite(output.loss)
    tolerance = 1e-4 if dtype == torch.float64 else 0.2
    assert (output.logits - expected).abs().mean() < tolerance * expected.abs().mean()


# Fast weights in and out


@torch.no_grad()
@pytest.mark.parametrize("order", ["update_then_apply", "apply_then_update"])
@pytest.mark.parametrize("use_momentum", [False, True])
def test_streaming_in_chunks_equals_the_whole_utterance(order, use_momentum, tiny_model):
    """Eight frames at a time, on their own samples, with the state handed on; attention sees one frame."""
    model = tiny_model(window_size=1, lact_chunk_size=8, lact_update_order=order, use_momentum=use_momentum)
    audio = torch.randn(2, 200 * 20 + 400)
    expected = model(audio)
    logits, state = [], None
    for first in range(0, 21, 8):
        last = min(first + 8, 21) - 1
        output = model(audio[:, 200 * first : 200 * last + 400], fast_weights=state)
        logits.append(output.logits)
        state = output.fast_weights
    torch.testing.assert_close(torch.cat(logits, dim=1), expected.logits, atol=1e-4, rtol=0)
    for mine, other in zip(state, expected.fast_weights, strict=True):
        for weight, other_weight in zip(mine.weights, other.weights, strict=True):
            torch.testing.assert_close(weight, other_weight, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_state_of_another_utterance_matters(tiny_model):
    model = tiny_model()
    first, second = torch.randn(2, 1, 3_000)
    state = model(first).fast_weights
    assert (model(second, fast_weights=state).logits - model(second).logits).abs().max() > 1e-3


def test_gradients_flow_through_the_state(tiny_model):
    model = tiny_model(num_hidden_layers=1)
    audio = torch.randn(1, 3_000, requires_grad=True)
    model(torch.randn(1, 3_000), fast_weights=model(audio).fast_weights).logits.square().sum().backward()
    assert audio.grad.any()


# Files


def test_saved_models_load_exactly(tiny_model, tmp_path):
    model = tiny_model(enable_ttt=True, use_momentum=True, lact_chunk_size=6, freeze_encoder=True, w0_w2_low_rank=2)
    model.save_pretrained(tmp_path)
    audio = torch.randn(1, 3_000)
    for loaded in (HybridASRForCTC.from_pretrained(tmp_path), AutoModelForCTC.from_pretrained(tmp_path)):
        assert type(loaded) is HybridASRForCTC
        assert not loaded.training
        assert {**loaded.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
        assert torch.equal(loaded(audio).logits, model(audio).logits)
        assert not any(parameter.requires_grad for parameter in loaded.front_end.parameters())
    assert type(AutoConfig.from_pretrained(tmp_path)) is HybridASRConfig


def test_saved_models_load_in_half_precision(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = HybridASRForCTC.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_processors_load_exactly(tmp_path, tiny_config):
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", "A", "B", "C"]
    processor = HybridASRProcessor.from_vocabulary({token: index for index, token in enumerate(tokens)})
    processor.save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    for loaded in (HybridASRProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is HybridASRProcessor
        assert list(loaded.vocabulary) == tokens
        assert loaded.encode_text("A CAB") == [6, 4, 8, 6, 7]
        assert loaded.tokenizer.decode([6, 6, 4, 0, 8, 6, 0, 7, 7]) == "A CAB"
        batch = loaded([[0.0, 1.0, 2.0], [5.0]], sampling_rate=16_000, padding=True, return_tensors="pt")
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        # mean 0 and variance 1 over the three real samples
        assert batch["input_values"][0].tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)], abs=1e-4)


def test_a_model_can_be_built_without_memory():
    with torch.device("meta"):
        model = HybridASRForCTC(HybridASRConfig())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
