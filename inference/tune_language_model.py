"""Choose the language model's weight and word score on labelled data: ``python -m lact_asr.inference.tune_language_model``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from lact_asr.checkpoint import load_checkpoint
from lact_asr.data.corpora import load_corpus
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.decoding import make_decoder, tune_language_model_weights
from lact_asr.inference.inference_setup import (
    TUNED_WEIGHTS_NAME,
    checkpoint_folder,
    choose_device,
    corpus_utterances,
    find_language_model,
)
from lact_asr.inference.recogniser import Recogniser
from lact_asr.training.run_log import write_json


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Search a grid on log-probabilities computed once; the best pair is written beside the checkpoint."""
    arguments = _parse(argv)
    checkpoint = load_checkpoint(arguments.checkpoint)
    language_model = find_language_model(arguments.lm_path, arguments.checkpoint)
    if language_model is None:
        raise InputError(f"There is no language model beside {arguments.checkpoint}; give --lm_path.")
    corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
    utterances = corpus_utterances(corpus)[: arguments.max_samples]
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id
    recogniser = Recogniser(checkpoint, make_decoder(vocabulary, blank_id), device=choose_device(arguments.device))
    emissions = [
        _emission(recogniser, utterance.read()) for utterance in tqdm(utterances, "computing log-probabilities")
    ]
    lm_weight, word_score, rows = tune_language_model_weights(
        emissions,
        [utterance.reference for utterance in utterances],
        lambda weight, score: make_decoder(
            vocabulary, blank_id, beam_size=arguments.beam_size, language_model=language_model, lm_weight=weight,
            word_score=score,
        ),
        arguments.lm_weights,
        arguments.word_scores,
    )  # fmt: skip
    for row in rows:
        print(f"lm_weight {row.lm_weight:<5g} word_score {row.word_score:<5g} WER {row.errors.rate:.2%}")
    print(f"Best: lm_weight {lm_weight:g}, word_score {word_score:g}")
    write_json(
        checkpoint_folder(arguments.checkpoint) / TUNED_WEIGHTS_NAME,
        {
            "best": {"lm_weight": lm_weight, "word_score": word_score},
            "tuned_on": corpus.name,
            "utterances": len(utterances),
            "grid": [{"lm_weight": r.lm_weight, "word_score": r.word_score, "wer": r.errors.rate} for r in rows],
        },
    )
    return 0


def _emission(recogniser: Recogniser, samples) -> torch.Tensor:
    input_values = recogniser.processor(samples, sampling_rate=16_000, return_tensors="pt").input_values
    return recogniser.emission(input_values.to(recogniser.device)).cpu()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    def floats(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m lact_asr.inference.tune_language_model", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--subset", required=True, help="labelled data that is not the test set")
    parser.add_argument("--dataset_type", choices=("librispeech", "manifest"), default="librispeech")
    parser.add_argument("--lm_path", default="auto")
    parser.add_argument("--lm_weights", type=floats, default=[0.3, 0.6, 1.0, 1.5], metavar="A,B,…")
    parser.add_argument("--word_scores", type=floats, default=[0.0, 1.0, 2.0, 3.0], metavar="A,B,…")
    parser.add_argument("--beam_size", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--max_samples", type=int, default=200, help="first so many utterances (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
