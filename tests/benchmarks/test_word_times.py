"""The synthesiser that tells when words begin, and the benchmark on a model that knows nothing."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.word_times import main, speak
from lact_asr.checkpoint import save_checkpoint
from lact_asr.data.generated_plan import plan_corpus
from lact_asr.text import build_vocabulary, normalise_text

pytest.importorskip("espeakng_loader", reason="generated speech needs espeakng-loader")


def test_words_begin_one_after_the_other_within_the_speech():
    utterance = plan_corpus(0.1, 0).utterances[0]
    samples, starts = speak(utterance)
    assert len(starts) == len(normalise_text(utterance.sentence.spoken).split())
    assert 0.5 <= starts[0] < 0.7
    assert np.all(np.diff(starts) > 0.02)
    assert starts[-1] < len(samples) / 16_000 - 0.6
    loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max()) / 16_000
    assert loud[0] == pytest.approx(starts[0], abs=0.15)


def test_a_model_that_knows_nothing_is_refused(speaking_model, tmp_path, capsys):
    save_checkpoint(tmp_path / "best_model.pt", speaking_model(), build_vocabulary())
    code = main(["--checkpoint", str(tmp_path), "--utterances", "2", "--output_dir", str(tmp_path / "out")])
    assert (code, "No word could be aligned" in capsys.readouterr().err) == (2, True)
    assert not (tmp_path / "out").exists()
