"""Broken files are refused in one sentence, and the fuzzer notices where one is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import fuzz, fuzz_readers
from benchmarks.fuzz_cases import Case, make_case

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = Path(__file__).with_name("fuzz_findings")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")


def test_what_was_found_and_200_new_cases_are_read_or_refused(tmp_path):
    command = [sys.executable, "-m", "benchmarks.fuzz", "--cases", "200", "--seed", "20", "--replay", str(FINDINGS)]
    finished = subprocess.run([*command, "--output_dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert result["findings"] == {}
    assert result["cases"] == 200 + len(list(FINDINGS.glob("*/*")))
    assert set(result["kinds"]) == {"recording", "manifest", "transcripts", "results", "checkpoint"}
    for counts in result["kinds"].values():  # neither is everything broken, nor nothing
        assert counts["read"] > 0
        assert counts["refused"] > 0


def test_cases_are_repeatable():
    cases = [make_case(3, number) for number in range(20)]
    assert cases == [make_case(3, number) for number in range(20)] != [make_case(4, number) for number in range(20)]


@pytest.mark.parametrize(
    ("reads", "finding"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "kills the process with SIGKILL"),
        (lambda: time.sleep(60), "takes more than 3 s"),
        (lambda: {}["key"], "KeyError: 'key'"),
        (lambda: len(bytearray(b"x") * (fuzz.LIMIT_BYTES_OF_A_CASE + 2**20)), " MiB"),
    ],
)
def test_a_crash_a_hang_an_exception_and_a_waste_of_memory_are_findings(monkeypatch, reads, finding):
    """The reading of the second of three cases goes wrong; the third is read all the same."""
    monkeypatch.setattr(fuzz, "LIMIT_SECONDS", 3.0)
    monkeypatch.setattr(fuzz_readers, "read_case", lambda case, folder: reads() and [] if case.content else [])
    cases = [Case("manifest", "case.jsonl", content) for content in (b"", b"bad", b"")]
    outcomes = [outcome for _, outcome in fuzz.read_all(cases)]
    assert [outcome.finding is None for outcome in outcomes] == [True, False, True]
    assert finding in outcomes[1].finding


@pytest.mark.parametrize("sentence", ["a line\nand another, of case.jsonl", "too short", "x" * 2_000])
def test_a_sentence_that_is_none_is_a_finding(monkeypatch, tmp_path, sentence):
    monkeypatch.setitem(fuzz_readers._READERS, "manifest", lambda path, folder: [sentence])
    with pytest.raises(AssertionError):
        fuzz_readers.read_case(Case("manifest", "case.jsonl", b""), tmp_path)


def test_growth_is_from_the_second_tenth_to_the_last():
    assert fuzz.growth_bytes([500] * 10 + [100] * 80 + [130] * 10) == 30
