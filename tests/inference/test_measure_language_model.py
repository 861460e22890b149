"""Perplexity of a language model on transcripts, in whatever case it is written."""

from __future__ import annotations

import pytest

from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.measure_language_model import main


def measured(capsys, *flags: object) -> tuple[int, str, str]:
    return (main([str(flag) for flag in flags]), *capsys.readouterr())


def test_each_file_has_its_line(language_model, tmp_path, capsys):
    known, unknown = tmp_path / "known.txt", tmp_path / "unknown.txt"
    known.write_text("The cat sat.\nA dog saw the cat\n")
    unknown.write_text("The zebra sat\n")
    code, out, _ = measured(capsys, "--lm_path", language_model, "--transcripts", known, unknown)
    model = load_language_model(language_model)
    perplexity = model.measure(["THE CAT SAT", "A DOG SAW THE CAT"]).perplexity
    assert code == 0
    assert out.splitlines()[0] == f"{known}: 8 words, perplexity {perplexity:.1f}, unknown words 0 (0.0%)"
    fit = model.measure(["THE ZEBRA SAT"])
    assert fit.perplexity_of_all == pytest.approx(model.model.perplexity("THE ZEBRA SAT"))  # kenlm's own
    assert out.splitlines()[1] == (
        f"{unknown}: 3 words, perplexity {fit.perplexity:.1f} without unknown words ({fit.perplexity_of_all:.5g} with them), "
        "unknown words 1 (33.3%)"
    )


def test_the_case_of_the_model_does_not_matter(language_model, tmp_path, capsys):
    lower, texts = tmp_path / "lower.arpa", tmp_path / "a.txt"
    lower.write_text(language_model.read_text().lower())
    texts.write_text("THE CAT SAT\n")
    upper_line, lower_line = (
        measured(capsys, "--lm_path", path, "--transcripts", texts)[1] for path in (language_model, lower)
    )
    assert upper_line == lower_line


def test_files_that_cannot_be_read(language_model, tmp_path, capsys):
    texts = tmp_path / "a.txt"
    texts.write_text("THE CAT\n")
    for flags in (("--lm_path", tmp_path / "none.arpa", "--transcripts", texts),
                  ("--lm_path", language_model, "--transcripts", tmp_path / "none.txt")):  # fmt: skip
        code, out, err = measured(capsys, *flags)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
