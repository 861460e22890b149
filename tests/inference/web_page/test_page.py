"""The page in a real browser: headless Chromium uploads recordings to `lact-asr demo` and reads what comes back."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

REAL_DATA = Path(os.environ.get("LACT_ASR_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
REAL_RECORDING = REAL_DATA / "librispeech_excerpt/LibriSpeech/dev-clean/2412/153948/2412-153948-0000.flac"
PATIENCE_SECONDS = 300
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytest.importorskip("gradio", reason='the page needs gradio: pip install "lact-asr[web]"')
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path: apt-get install chromium"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(saved_checkpoint, tmp_path_factory):
    """Of a page that is served by the console command, with a model that speaks."""
    port, log = free_port(), tmp_path_factory.mktemp("page") / "log.txt"
    flags = ["--checkpoint", str(saved_checkpoint), "--ttt_loss_type", "entropy", "--greedy", "--device", "cpu",
             "--ttt_max_entropy", "1", "--port", str(port), "--max_seconds", "60"]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "lact_asr", "demo", *flags], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"http://" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def browser(audio, tmp_path_factory):
    """Its microphone hears a file, over and over."""
    heard = audio.write(tmp_path_factory.mktemp("microphone") / "heard.wav", 2.0)
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    flags = ["--no-sandbox", *microphone, f"--use-file-for-fake-audio-capture={heard}"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, narrow, in a window of its own; it may ask nobody but this computer."""
    window = browser.new_page(viewport={"width": 390, "height": 844})
    window.set_default_timeout(1_000 * PATIENCE_SECONDS)
    strangers = []
    window.on("request", lambda request: strangers.append(request.url) if address not in request.url else None)
    window.goto(address)
    window.get_by_role("button", name="Transcribe").wait_for()
    yield window
    window.close()
    assert [url for url in strangers if url.startswith("http")] == []


def upload(page, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_text(path.name).first.wait_for()
    page.get_by_role("button", name="Transcribe").click()


@pytest.fixture(params=["synthetic", pytest.param("real", marks=pytest.mark.real_data)])
def recording(request, audio, tmp_path) -> Path:
    if request.param == "synthetic":
        return audio.write(tmp_path / "tone.wav", 1.0)
    if not REAL_RECORDING.exists():
        pytest.skip(f"no recording {REAL_RECORDING} (set LACT_ASR_DATA)")
    return REAL_RECORDING


def test_an_upload_gives_both_transcripts_with_times_and_confidences(page, recording):
    upload(page, recording)
    for title in ("Without test-time training", "With test-time training"):
        card = page.get_by_role("region", name=title)
        card.wait_for()
        assert re.search(r"\d+\.\d\d s of computing, real-time factor \d+\.\d\d", card.inner_text())
        words = card.locator(".words > *").all_inner_texts()
        assert words
        card.get_by_text("Times and confidences").click()
        assert card.get_by_role("row").count() == 1 + len(words)
        assert re.search(r"\d %", card.get_by_role("row").nth(1).inner_text())
    assert f"{soundfile.info(recording).duration:.2f} s of audio" in page.locator(".legend").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # fits a narrow window


def test_what_the_microphone_hears_is_transcribed(page):
    page.get_by_role("button", name="Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(2_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    page.get_by_role("button", name="Transcribe").click()
    page.get_by_role("region", name="With test-time training").wait_for()
    seconds = float(page.locator(".legend").inner_text().split(" s of audio")[0])
    assert 0.5 < seconds < 60.0


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        (
            "words.wav",
            lambda path: path.write_text("these are words\n" * 50),
            "words.wav is not audio that can be read",
        ),
        (
            "long.wav",
            lambda path: soundfile.write(path, np.zeros(61 * 16_000), 16_000),
            "takes recordings of 60 s at most",
        ),
        ("short.wav", lambda path: soundfile.write(path, np.zeros(300), 16_000), "short.wav is too short: 300 samples"),
    ],
)
def test_bad_input_is_answered_by_a_sentence(page, tmp_path, name, make, sentence):
    make(tmp_path / name)
    upload(page, tmp_path / name)
    alert = page.locator("#answer").get_by_role("alert")
    alert.wait_for()
    assert sentence in alert.inner_text()
    assert str(Path("/tmp")) not in alert.inner_text()


def test_nothing_is_not_transcribed(page):
    page.get_by_role("button", name="Transcribe").click()
    page.get_by_text("Upload or record something first.").wait_for()
