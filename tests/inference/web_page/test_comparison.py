"""What the page shows of two transcripts: words that differ, doubts, times, nothing unescaped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lact_asr.checkpoint import load_checkpoint
from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import Word
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.web_page.comparison import Comparison, Version, compare, differing_words


@pytest.fixture
def recognisers(saved_checkpoint):
    """One without and one with test-time training that changes much."""
    checkpoint = load_checkpoint(saved_checkpoint)
    decoder = make_decoder(checkpoint.processor.vocabulary, 0, beam_size=1)
    settings = TTTSettings("entropy", steps=3, parameters=("norms",), learning_rate=0.3, max_entropy=1)
    return Recogniser(checkpoint, decoder), Recogniser(checkpoint, decoder, settings)


def test_both_transcripts_are_those_of_their_recognisers(recognisers, audio):
    samples = audio.make(1.0)
    plain, adapted = recognisers
    comparison = compare(samples, plain, adapted)
    (before,), (after,) = plain([samples]), adapted([samples])
    assert comparison.plain.words == before.words != after.words == comparison.adapted.words
    assert any(comparison.plain.differs)
    assert comparison.audio_seconds == 1.0
    assert min(comparison.plain.compute_seconds, comparison.adapted.compute_seconds) > 0


def test_output_that_is_not_finite_is_refused(recognisers, audio):
    plain, adapted = recognisers
    with torch.no_grad():
        plain.model.ctc_head.bias[0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        compare(audio.make(), plain, adapted)


@pytest.mark.parametrize(
    ("one", "other", "marks"),
    [
        ("A CAT SAT", "A CAT SAT", ("...", "...")),
        ("A CAT SAT", "A BAT SAT", (".x.", ".x.")),
        ("A CAT SAT", "CAT SAT DOWN", ("x..", "..x")),
        ("", "A CAT", ("", "xx")),
    ],
)
def test_words_without_their_like_in_the_other_transcript_differ(one, other, marks):
    found = differing_words(one.split(), other.split())
    assert tuple("".join("x" if differs else "." for differs in version) for version in found) == marks


def test_the_fragment_marks_shades_times_and_escapes():
    plain = Version((Word("<B>", 0.0, 0.5, 0.25), Word("SAT", 0.5, 1.0, 1.0)), (True, False), 0.5)
    fragment = Comparison(plain, Version((), (), 3.0), 2.0, "it was broken & refused").to_html()
    assert '<mark style="--doubt: 0.75" title="0.00 to 0.50 s, confidence 25 %">&lt;B&gt;</mark>' in fragment
    assert '<span style="--doubt: 0.00" title="0.50 to 1.00 s, confidence 100 %">SAT</span>' in fragment
    assert "<b>0.50 s</b> of computing, real-time factor <b>0.25</b>" in fragment
    assert "No speech was recognised." in fragment
    assert "as it was: it was broken &amp; refused." in fragment
