"""The command behind the page: what cannot be served is said in one sentence."""

from __future__ import annotations

import sys

import pytest

from lact_asr.errors import EXIT_BAD_INPUT
from lact_asr.inference.web_page.command import main, parse_arguments


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "lact_asr.inference.web_page.page", raising=False)
    assert main(["--checkpoint", "best_model.pt"]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == 'error: The page needs gradio: pip install "lact-asr[web]".\n'


def test_a_checkpoint_that_is_not_there(tmp_path, capsys):
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "lact-asr[web]"')
    assert main(["--checkpoint", str(tmp_path / "none.pt")]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"error: There is no checkpoint file {tmp_path / 'none.pt'}.\n"


def test_flags_of_recognition_are_taken():
    page, recognition = parse_arguments(
        ["--checkpoint", "a.pt", "--port", "8000", "--ttt_loss_type", "tent", "--greedy"]
    )
    assert (page.port, page.host) == (8000, "127.0.0.1")
    assert (recognition.checkpoint, recognition.use_ttt, recognition.greedy) == ("a.pt", True, True)
    assert recognition.ttt_loss_type == "tent"
