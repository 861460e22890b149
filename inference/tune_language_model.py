"""Choose the language model's weight and word score on labelled data: ``python -m lact_asr.inference.tune_language_model``."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lact_asr.atomic_files import write_json
from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.decoder_names import DECODERS
from lact_asr.shared_flags import add_checkpoint, add_dataset_type, positive_int

if TYPE_CHECKING:
    import torch

    from lact_asr.inference.decoding import Decoder, TuningRow
    from lact_asr.inference.evaluation import Utterance
    from lact_asr.inference.language_models.language_model import LanguageModel
    from lact_asr.inference.recogniser import Recogniser

DESCRIPTION = """Find the language model's weight and the word score with the lowest WER on labelled data. The log-probabilities are
computed once, every pair of the two grids is tried on them, and the best is written beside the checkpoint
(lm_weights.json), where transcribing finds it, with a heat map of all."""


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Search a grid on log-probabilities computed once; the best pair is written beside the checkpoint."""
    arguments = _parse(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.checkpoint import load_checkpoint
    from lact_asr.data.corpora import load_corpus
    from lact_asr.devices import choose_device
    from lact_asr.inference.companions import (
        LANGUAGE_MODEL_NAME,
        TUNED_WEIGHTS_NAME,
        checkpoint_folder,
        find_language_model,
    )
    from lact_asr.inference.decoding import tune_language_model_weights
    from lact_asr.inference.recogniser import Recogniser
    from lact_asr.inference.utterances import corpus_utterances, spread_evenly

    checkpoint = load_checkpoint(arguments.checkpoint)
    language_model = find_language_model(arguments.lm_path, arguments.checkpoint)
    if language_model is None:
        raise InputError(f"There is no {LANGUAGE_MODEL_NAME} beside {arguments.checkpoint}; give --lm_path.")
    corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id

    options = {"beam_size": arguments.beam_size, "back_end": arguments.decoder}
    decoder = functools.partial(_decoder, vocabulary, blank_id, language_model, options)
    # Flags and a language model that do not fit are refused here, before minutes of computing.
    first = decoder(arguments.lm_weights[0], arguments.word_scores[0])
    recogniser = Recogniser(checkpoint, first, device=choose_device(arguments.device))
    references, emissions = _emissions(recogniser, spread_evenly(corpus_utterances(corpus), arguments.max_samples))
    lm_weight, word_score, rows = tune_language_model_weights(
        emissions, references, decoder, arguments.lm_weights, arguments.word_scores, arguments.processes
    )
    for row in rows:
        print(f"lm_weight {row.lm_weight:<5g} word_score {row.word_score:<5g} WER {row.errors.rate:.2%}")
    path = checkpoint_folder(arguments.checkpoint) / TUNED_WEIGHTS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(
        path,
        {
            "best": {"lm_weight": lm_weight, "word_score": word_score},
            "language_model": _name_from(path.parent, language_model.path),
            "tuned_on": corpus.name,
            "utterances": len(references),
            "grid": [{"lm_weight": r.lm_weight, "word_score": r.word_score, "wer": r.errors.rate} for r in rows],
        },
    )
    print(f"Best: lm_weight {lm_weight:g}, word_score {word_score:g}; written to {path}")
    _plot(rows, path.with_suffix(".png"))
    return 0


def _decoder(
    vocabulary: dict[str, int], blank_id: int, language_model: LanguageModel, options: dict[str, object],
    lm_weight: float, word_score: float,
) -> Decoder:  # fmt: skip
    from lact_asr.inference.decoding import make_decoder

    return make_decoder(
        vocabulary, blank_id, language_model=language_model, lm_weight=lm_weight, word_score=word_score, **options
    )


def _plot(rows: list[TuningRow], path: Path) -> None:
    from lact_asr.inference.decoding.weight_heat_map import plot_word_error_rates

    try:
        plot_word_error_rates(rows, path)
    except ImportError:
        print("No heat map: it needs the package matplotlib: pip install 'lact-asr[demo]'", file=sys.stderr)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None
    else:
        print(f"Heat map: {path}")


def _emissions(recogniser: Recogniser, utterances: list[Utterance]) -> tuple[list[str], list[torch.Tensor]]:
    """References and log-probabilities [T, V] on the CPU; a bad file is reported and the rest go on.

    Raises:
        InputError: no recording can be read.
    """
    references, emissions = [], []
    for utterance in tqdm(utterances, "computing log-probabilities", unit="utterance", mininterval=1.0):
        try:
            emissions.append(recogniser.emission(utterance.read()).cpu())
        except InputError as error:
            tqdm.write(f"{utterance.id}: {error}", file=sys.stderr)
            continue
        references.append(utterance.reference)
    if not references:
        raise InputError(f"None of the {len(utterances)} recordings could be read.")
    return references, emissions


def _name_from(folder: Path, path: Path) -> str:
    """A file's bare name where it lies in a folder, so that the two can move together, else its whole path."""
    return path.name if path.resolve().parent == folder.resolve() else str(path.resolve())


def _write(path: Path, content: dict) -> None:
    try:
        write_json(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def _parse(argv: list[str] | None) -> argparse.Namespace:
    def floats(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.tune_language_model"), description=DESCRIPTION
    )
    add_checkpoint(parser, "; the result is written beside it")
    parser.add_argument("--data_dir", type=Path, required=True, help="a corpus, with --subset")
    parser.add_argument("--subset", required=True, help="labelled data that is not the test set")
    add_dataset_type(parser)
    parser.add_argument(
        "--lm_path", default="auto", help="ARPA or KenLM binary (default: lm.arpa beside the checkpoint)"
    )
    parser.add_argument(
        "--lm_weights",
        type=floats,
        default="0.3,0.6,1.0,1.5",
        metavar="A,B,…",
        help="weights of the language model to try with each score (default: %(default)s)",
    )
    parser.add_argument(
        "--word_scores",
        type=floats,
        default="0.0,1.0,2.0,3.0",
        metavar="A,B,…",
        help="scores to try, added for each word: higher ones make for more words (default: %(default)s)",
    )
    parser.add_argument("--beam_size", type=int, default=20, help="beams of the search (default: %(default)s)")
    parser.add_argument("--decoder", choices=tuple(DECODERS), default="pyctcdecode", help="default: %(default)s")
    parser.add_argument(
        "--processes",
        type=positive_int,
        default=os.cpu_count() or 1,
        help="pairs to try at once (default: %(default)s, the cores)",
    )
    parser.add_argument(
        "--max_samples", type=positive_int, default=200, help="so many utterances, spread evenly (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
