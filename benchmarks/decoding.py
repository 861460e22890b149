"""Decoders side by side on the same log-probabilities: words a second of one core, word error rate, memory.

    python -m benchmarks.decoding --checkpoint RUN/best_model.pt --data_dir CORPUS --subset test-clean

The model runs once. Each decoder then decodes in a process of its own. "pyctcdecode as it comes" is that library with its own language
model class and its own settings but the beam size: what the others are compared with. Log-probabilities of a model with another frame rate
are interpolated in time to --frames_per_second.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.timing import environment
from lact_asr.atomic_files import write_json, write_text
from lact_asr.checkpoint import load_checkpoint
from lact_asr.data.corpora import load_corpus
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.front_end.geometry import FrameGeometry
from lact_asr.inference.companions import find_language_model
from lact_asr.inference.decoder_names import DECODERS
from lact_asr.inference.decoding import CTCAlphabet, GreedyDecoder, make_decoder
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.results.summary import markdown_table
from lact_asr.inference.robustness.peak_memory import PeakMemory, memory_in_use, release_freed_memory
from lact_asr.inference.utterances import corpus_utterances, spread_evenly
from lact_asr.metrics import corpus_word_errors
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.shared_flags import add_checkpoint, add_dataset_type

PLAIN = "pyctcdecode as it comes"
_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Task:
    """What every decoder gets: the file of log-probabilities, each [T, V], and what a decoder is made from."""

    emissions: Path
    vocabulary: dict[str, int]
    blank_id: int
    lm_path: str
    options: dict[str, float]
    repeats: int


def _plain_pyctcdecode(task: Task) -> Callable[[torch.Tensor], str]:
    from pyctcdecode.alphabet import Alphabet
    from pyctcdecode.decoder import BeamSearchDecoderCTC
    from pyctcdecode.language_model import LanguageModel

    alphabet, model = CTCAlphabet(task.vocabulary, task.blank_id), load_language_model(task.lm_path)
    weights = {"alpha": task.options["lm_weight"], "beta": task.options["word_score"]}
    scorer = LanguageModel(model.model, model.words, **weights)
    search = BeamSearchDecoderCTC(Alphabet(alphabet.labels, is_bpe=False), scorer)
    return lambda frames: search.decode(frames.numpy()[:, alphabet.columns], beam_width=task.options["beam_size"])


def _decoder(name: str, task: Task) -> Callable[[torch.Tensor], str]:
    if name == PLAIN:
        return _plain_pyctcdecode(task)
    if name == "greedy":
        decoder = GreedyDecoder(task.vocabulary, task.blank_id)
    else:
        model = load_language_model(task.lm_path)
        decoder = make_decoder(task.vocabulary, task.blank_id, language_model=model, back_end=name, **task.options)
    return lambda frames: decoder.decode(frames).text


def _run(name: str, task: Task) -> dict[str, object]:
    """In a process of its own: transcripts, CPU seconds (the median of repeats) and the memory that decoder and decoding add."""
    torch.set_num_threads(1)
    emissions = torch.load(task.emissions)
    release_freed_memory()
    before = memory_in_use(_CPU)
    try:
        with PeakMemory(_CPU) as memory:
            decode = _decoder(name, task)
            texts = [decode(frames) for frames in emissions]
    except InputError as error:
        return {"error": str(error)}
    seconds = []
    for _ in range(task.repeats):
        start = time.process_time()
        for frames in emissions:
            decode(frames)
        seconds.append(time.process_time() - start)
    added = (memory.peak - before) / 2**20
    return {"texts": texts, "cpu_seconds": statistics.median(seconds), "memory_mib": added}


def _emissions(recogniser: Recogniser, utterances: list, rate: float, wanted_rate: float) -> tuple[list, float, float]:
    """(log-probabilities [T, V] at the wanted rate, seconds of audio, CPU seconds of the model)."""
    emissions, audio_seconds, model_seconds = [], 0.0, 0.0
    for utterance in tqdm(utterances, "computing log-probabilities", unit="utterance", mininterval=1.0):
        samples = utterance.read()
        start = time.process_time()
        log_probs = recogniser.emission(samples)
        model_seconds += time.process_time() - start
        audio_seconds += len(samples) / SAMPLE_RATE_HZ
        size = round(len(log_probs) * wanted_rate / rate)
        stretched = torch.nn.functional.interpolate(log_probs.T[None], size=size, mode="linear")
        emissions.append(stretched[0].T.log_softmax(-1).contiguous())
    return emissions, audio_seconds, model_seconds


def _measure(arguments: argparse.Namespace, subset: str, checkpoint, options: dict[str, float]) -> dict[str, object]:
    recogniser = Recogniser(checkpoint, None)
    rate = SAMPLE_RATE_HZ / FrameGeometry.of(checkpoint.model.config).samples_per_frame
    corpus = load_corpus(arguments.data_dir, subset, arguments.dataset_type)
    utterances = list(spread_evenly(corpus_utterances(corpus), arguments.max_samples))
    references = [utterance.reference for utterance in utterances]
    wanted_rate = arguments.frames_per_second or rate
    emissions, audio_seconds, model_seconds = _emissions(recogniser, utterances, rate, wanted_rate)
    words, rows = sum(len(reference.split()) for reference in references), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "emissions.pt")
        torch.save(emissions, path)
        vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id
        task = Task(path, vocabulary, blank_id, arguments.lm_path, options, arguments.repeats)
        for name in tqdm((PLAIN, *arguments.decoders), subset, unit="decoder"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result = pool.apply(_run, (name, task))
            if "error" not in result:
                result["wer"] = corpus_word_errors(references, result.pop("texts")).rate
                result["words_per_second"] = words / result["cpu_seconds"]
                result["speed_against_plain"] = rows[PLAIN]["cpu_seconds"] / result["cpu_seconds"] if rows else 1.0
            rows[name] = result
    return {
        "subset": subset,
        "words": words,
        "audio_seconds": audio_seconds,
        "frames_per_second": wanted_rate,
        "model_frames_per_second": rate,
        "model_cpu_seconds": model_seconds,
        "decoders": rows,
    }


def _table(measured: dict[str, object]) -> str:
    header = ["decoder", "words a second", "against plain", "WER %", "MiB", "CPU s"]
    rows = [
        [name, row["error"], *["–"] * 4]
        if "error" in row
        else [
            name,
            f"{row['words_per_second']:.0f}",
            f"{row['speed_against_plain']:.1f} ×",
            f"{100 * row['wer']:.2f}",
            f"{row['memory_mib']:.0f}",
            f"{row['cpu_seconds']:.2f}",
        ]
        for name, row in measured["decoders"].items()
    ]
    title = (
        f"{measured['subset']}: {measured['words']} words in {measured['audio_seconds']:.0f} s of audio, "
        f"{measured['frames_per_second']:g} frames a second (the model's own: {measured['model_frames_per_second']:g}); "
        f"the model took {measured['model_cpu_seconds']:.1f} CPU seconds."
    )
    return f"{title}\n\n{markdown_table([header, *rows])}\n"


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Measure each subset, print tables, and write decoding.json and decoding.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--subset", nargs="+", required=True)
    add_dataset_type(parser)
    parser.add_argument("--lm_path", default="auto", help="default: lm.arpa beside the checkpoint")
    parser.add_argument("--lm_weight", type=float, default=0.5)
    parser.add_argument("--word_score", type=float, default=1.5)
    parser.add_argument("--beam_size", type=int, default=50)
    everything = (*DECODERS, "greedy")
    parser.add_argument(
        "--decoders", nargs="+", choices=everything, default=everything, help="beside plain pyctcdecode"
    )
    parser.add_argument("--frames_per_second", type=float, default=80.0, help="0 for the model's own (default: 80)")
    parser.add_argument("--max_samples", type=int, default=200, help="utterances (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/decoding"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    language_model = find_language_model(arguments.lm_path, arguments.checkpoint)
    if language_model is None:
        raise InputError(f"There is no language model beside {arguments.checkpoint}; give --lm_path.")
    arguments.lm_path = str(language_model.path)
    checkpoint = load_checkpoint(arguments.checkpoint)
    options = {name: getattr(arguments, name) for name in ("beam_size", "lm_weight", "word_score")}
    measured = [_measure(arguments, subset, checkpoint, options) for subset in arguments.subset]
    tables = "\n".join(map(_table, measured))
    print(tables)
    content = {"environment": environment(_CPU), "options": options, "measured": measured}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "decoding.json", content)
    write_text(arguments.output_dir / "decoding.md", tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
