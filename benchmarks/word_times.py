"""How far the starts of words are from the true ones, on synthetic speech whose synthesiser tells when each word begins.

    python -m benchmarks.word_times --checkpoint demo_output/model

Test voices and sentences of the generated corpus. Words come from aligning the true transcript (those with a confidence above
0.5), and from greedy transcripts without an error. Writes word_times.json.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

import numpy as np
import soxr
import torch
from tqdm import tqdm

from benchmarks.timing import environment
from lact_asr.atomic_files import write_json
from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import load_checkpoint
from lact_asr.data.espeak import EspeakSynthesiser
from lact_asr.data.generated_plan import TEST_SUBSET, Utterance, plan_corpus
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.alignment.forced_alignment import align_recording
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.recogniser import Recogniser
from lact_asr.shared_flags import add_checkpoint
from lact_asr.text import normalise_text

SURE = 0.5
_LIST_TERMINATED, _WORD = 0, 1  # kinds of events in speak_lib.h


class _Event(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


class TellingSynthesiser(EspeakSynthesiser):
    """eSpeak that also notes when each word of what it says begins: `word_starts`, in seconds."""

    def __init__(self) -> None:
        self.word_starts: list[float] = []
        super().__init__()

    def _receive(self, samples, count: int, events) -> int:
        event = ctypes.cast(events, ctypes.POINTER(_Event))
        index = 0
        while event[index].kind != _LIST_TERMINATED:
            if event[index].kind == _WORD:
                self.word_starts.append(event[index].audio_milliseconds / 1000)
            index += 1
        return super()._receive(samples, count, events)


def speak(utterance: Utterance) -> tuple[np.ndarray, list[float]]:
    """Float32 [samples] at 16 kHz with half a second of faint noise around the speech, and each word's start in seconds."""
    with TellingSynthesiser() as synthesiser:
        native = synthesiser.speak(utterance.sentence.spoken, utterance.voice).astype(np.float32) / 32768
        rate_hz, starts = synthesiser.sample_rate_hz, synthesiser.word_starts
    speech = np.pad(soxr.resample(native, rate_hz, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ // 2)
    noise = np.random.default_rng(0).standard_normal(speech.size) * 10 ** (utterance.floor_dbfs / 20)
    return (speech + noise).astype(np.float32), [start + 0.5 for start in starts]


def measure(recogniser: Recogniser, utterances: list[Utterance]) -> dict[str, list[float]]:
    """By how many seconds words begin late, aligned and recognised."""
    late: dict[str, list[float]] = {"aligned": [], "recognised": []}
    for utterance in tqdm(utterances, "utterances"):
        samples, starts = speak(utterance)
        text = normalise_text(utterance.sentence.spoken)
        if len(starts) != len(text.split()):
            continue  # eSpeak speaks some words as one
        aligned = zip(align_recording("", samples, text, recogniser).words, starts, strict=True)
        late["aligned"] += [word.start_seconds - start for word, start in aligned if word.confidence > SURE]
        (answer,) = recogniser([samples])
        if answer.text == text:
            late["recognised"] += [word.start_seconds - s for word, s in zip(answer.words, starts, strict=True)]
    return late


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser, " of a model that knows eSpeak's voices, as the demo's")
    parser.add_argument("--utterances", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/word_times"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(arguments.checkpoint)
    decoder = make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id)
    planned = [utterance for utterance in plan_corpus(1.0, 5).utterances if utterance.subset == TEST_SUBSET]
    late = measure(Recogniser(checkpoint, decoder), planned[: arguments.utterances])
    if not late["aligned"]:
        raise InputError(
            f"No word could be aligned with a confidence above {SURE}: this model does not know these voices."
        )
    rows = {name: _summary(seconds) for name, seconds in late.items() if seconds}
    for name, row in rows.items():
        print(
            f"{name:10} {row['words']:5} words begin {row['median_ms']:.0f} ms late (median), 5 to 95 %: {row['range_ms']}"
        )
    command = " ".join(["python -m benchmarks.word_times", *(sys.argv[1:] if argv is None else argv)])
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.output_dir / "word_times.json",
        {**environment(torch.device("cpu")), "command": command, "results": rows},
    )
    return 0


def _summary(seconds: list[float]) -> dict:
    milliseconds = 1000 * np.array(seconds)
    return {
        "words": len(seconds),
        "median_ms": float(np.median(milliseconds)),
        "range_ms": np.percentile(milliseconds, [5, 95]).round().tolist(),
    }


if __name__ == "__main__":
    sys.exit(main())
