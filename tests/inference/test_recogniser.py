"""From samples to text, with and without test-time training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lact_asr.checkpoint import LoadedCheckpoint, load_checkpoint
from lact_asr.errors import InputError
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt_procedure import TestTimeTrainer

ENTROPY = TTTSettings(loss_type="entropy", learning_rate=1e-2, steps=2, max_entropy=1)


@pytest.fixture
def checkpoint(saved_checkpoint) -> LoadedCheckpoint:
    return load_checkpoint(saved_checkpoint)


def recogniser(checkpoint: LoadedCheckpoint, settings: TTTSettings | None = None, **options) -> Recogniser:
    decoder = make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id)
    return Recogniser(checkpoint, decoder, settings, **options)


def greedy_text(checkpoint: LoadedCheckpoint, logits: torch.Tensor) -> str:
    """Best class of each frame, repeats merged, blanks and special tokens left out, written out by hand."""
    characters = {index: token for token, index in checkpoint.processor.vocabulary.items()}
    logits = logits.clone()
    logits[:, 1:4] = -np.inf
    best = logits.argmax(-1).tolist()
    spelt = [characters[now] for before, now in zip([None, *best], best, strict=False) if now not in (before, 0)]
    return " ".join("".join(spelt).replace("|", " ").split())


def normalised(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))


@torch.no_grad()
def test_text_of_a_recording(checkpoint, audio):
    for number in range(3):
        samples = audio.make(0.7, number)
        logits = checkpoint.model(normalised(samples)[None]).logits[0]
        (hypotheses,) = recogniser(checkpoint)([samples])
        assert (hypotheses.text, hypotheses.text_without_ttt) == (greedy_text(checkpoint, logits), None)
        assert len(hypotheses.text) > 5
        torch.testing.assert_close(
            recogniser(checkpoint).emission(samples), logits.log_softmax(-1), rtol=1e-3, atol=1e-3
        )


def test_text_with_and_without_ttt(checkpoint, audio):
    samples = audio.make(0.7, 1)
    adapting = recogniser(checkpoint, ENTROPY)
    (hypotheses,) = adapting([samples])
    outcome = TestTimeTrainer(checkpoint.model, ENTROPY).adapt(adapting._input_values(samples)[0])
    assert hypotheses.text == greedy_text(checkpoint, outcome.logits)
    assert hypotheses.text_without_ttt == recogniser(checkpoint)([samples])[0].text
    assert hypotheses.text != hypotheses.text_without_ttt
    assert adapting([samples]) == [hypotheses]
    assert adapting.refusals == {}


@pytest.mark.parametrize("settings", [None, ENTROPY])
def test_words_of_the_kept_transcript_have_times(checkpoint, audio, settings):
    (hypotheses,) = recogniser(checkpoint, settings)([audio.make(1.5, 2)])
    assert " ".join(word.text for word in hypotheses.words) == hypotheses.text
    assert len(hypotheses.words) > 2
    times = [seconds for word in hypotheses.words for seconds in (word.start_seconds, word.end_seconds)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= 1.5
    assert times[-1] > 1.0


def test_words_of_a_refused_adaptation_are_those_without_it(checkpoint, audio):
    samples = audio.make(0.3, 1)
    (plain,), (refused,) = (
        recogniser(checkpoint)([samples]),
        recogniser(checkpoint, TTTSettings(mask_length=10))([samples]),
    )
    assert refused.ttt_refusal is not None
    assert refused.words == plain.words != ()


def test_refusals_are_counted_and_leave_the_text(checkpoint, audio):
    adapting = recogniser(checkpoint, TTTSettings(mask_length=10))
    for seconds in (0.2, 0.3, 0.7):
        (hypotheses,) = adapting([audio.make(seconds)])
        assert (hypotheses.text == hypotheses.text_without_ttt) is (seconds < 0.7)
        assert hypotheses.ttt_refusal == ("the utterance is too short to mask" if seconds < 0.7 else None)
    assert adapting.refusals == {"the utterance is too short to mask": 2}


def test_emission_may_move_in_one_piece(checkpoint, audio):
    samples = audio.make(0.7)
    assert recogniser(checkpoint, move_emission_to_cpu=True)([samples]) == recogniser(checkpoint)([samples])


@pytest.mark.parametrize("settings", [None, ENTROPY])
def test_output_that_is_not_finite_is_said(checkpoint, audio, settings):
    with torch.no_grad():
        checkpoint.model.ctc_head.bias[7] = np.nan
    (answer,) = recogniser(checkpoint, settings)([audio.make(0.7)])
    assert isinstance(answer, InputError)
    assert "not finite" in str(answer)


@pytest.mark.parametrize("settings", [None, ENTROPY, TTTSettings(mask_length=3)])
def test_recordings_at_once_are_transcribed_as_alone(checkpoint, audio, settings):
    together = recogniser(checkpoint, settings)
    recordings = [audio.make(seconds, number) for number, seconds in enumerate((0.7, 0.4, 0.9, 0.7))]
    answers = together(recordings)
    assert answers == [recogniser(checkpoint, settings)([samples])[0] for samples in recordings]
    assert len({answer.text for answer in answers}) == 4


def test_likelier_transcripts_are_kept_and_others_refused(checkpoint, audio):
    """Of many recordings a violent step spoils some: what is kept then is what both models find likelier."""
    recordings = [audio.make(0.7, number) for number in range(12)]
    violent = TTTSettings(loss_type="tent", learning_rate=3e-2, steps=3)
    always, likelier = (recogniser(checkpoint, violent, keep=keep) for keep in ("always", "likelier"))
    reason = "the transcript without TTT is likelier"
    answers = list(zip(always(recordings), likelier(recordings), strict=True))
    refused = [answer for _, answer in answers if answer.ttt_refusal == reason]
    assert 0 < len(refused) < len(recordings)
    assert likelier.refusals[reason] == len(refused)
    assert reason not in always.refusals
    for adapted, kept in answers:
        assert kept.text == (kept.text_without_ttt if kept.ttt_refusal else adapted.text)
