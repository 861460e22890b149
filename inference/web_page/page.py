"""The page: a recording goes in, two transcripts come out."""

from __future__ import annotations

import html
from importlib import resources
from pathlib import Path

import gradio
import numpy as np

from lact_asr.audio import audio_duration_seconds, read_audio
from lact_asr.errors import InputError
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.web_page.comparison import compare

CSS = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
THEME = gradio.themes.Base(  # with the reader's own fonts: Gradio's are fetched from the web
    primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
_HEADER = """<header class="page-header"><h1>Speech recognition with test-time training</h1>
<p>Upload or record some English speech. The model transcribes it as it was trained, then adapts to the recording itself and
transcribes it again. Nothing leaves this computer.</p></header>"""
_UPLOADS_KEPT_SECONDS = 600


def make_page(plain: Recogniser, adapted: Recogniser, settings: str, max_seconds: float) -> gradio.Blocks:
    """Lay the page out; requests use the model one after the other, in the order in which they came.

    Args:
        plain: a recogniser without test-time training.
        adapted: the same with it.
        settings: in words, what both do.
        max_seconds: longer recordings are refused.
    """

    def answer(path: str | None) -> str:
        try:
            return compare(_read(path, max_seconds), plain, adapted).to_html()
        except InputError as error:
            return f'<p class="refusal" role="alert">{html.escape(str(error))}</p>'

    with gradio.Blocks(
        title="lact-asr", analytics_enabled=False, delete_cache=(_UPLOADS_KEPT_SECONDS, _UPLOADS_KEPT_SECONDS)
    ) as page:
        gradio.HTML(_HEADER)
        recording = gradio.Audio(sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[])
        button = gradio.Button("Transcribe", variant="primary")
        output = gradio.HTML(min_height=120, elem_id="answer")
        gradio.HTML(f'<p class="settings">{html.escape(settings)}</p>')
        button.click(answer, recording, output, concurrency_limit=1, api_name="transcribe")
    return page


def _read(path: str | None, max_seconds: float) -> np.ndarray:
    """The samples of an upload; sentences name it as its sender does, not by where it lies."""
    if path is None:
        raise InputError("Upload or record something first.")
    try:
        seconds = audio_duration_seconds(path)
        if seconds > max_seconds:
            raise InputError(f"{path} takes {seconds:.0f} s: this page takes recordings of {max_seconds:g} s at most.")
        return read_audio(path)
    except InputError as error:
        raise InputError(str(error).replace(path, Path(path).name)) from None
