"""Means and variances of features in training, for alignment at test time: ``python -m lact_asr.inference.feature_statistics``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.shared_flags import add_checkpoint, add_dataset_type, positive_int

if TYPE_CHECKING:
    from lact_asr.inference.evaluation import Utterance
    from lact_asr.inference.recogniser import Recogniser
    from lact_asr.inference.ttt.statistics import FeatureAccumulator


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Write the mean and the variance of a model's features and hidden states, over frames and by predicted token.

    The file lies beside the checkpoint, where the TTT losses alignment and e_bats look for it.
    """
    arguments = _parse(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.checkpoint import load_checkpoint
    from lact_asr.data.corpora import load_corpus
    from lact_asr.devices import choose_device
    from lact_asr.inference.companions import checkpoint_folder
    from lact_asr.inference.decoding import make_decoder
    from lact_asr.inference.recogniser import Recogniser
    from lact_asr.inference.ttt.statistics import STATISTICS_NAME, save_statistics
    from lact_asr.inference.utterances import corpus_utterances, spread_evenly

    checkpoint = load_checkpoint(arguments.checkpoint)
    corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
    decoder = make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id)
    recogniser = Recogniser(checkpoint, decoder, device=choose_device(arguments.device))
    utterances = corpus_utterances(corpus)
    accumulator = _accumulate(recogniser, spread_evenly(utterances, arguments.max_samples))
    path = checkpoint_folder(arguments.checkpoint) / STATISTICS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    save_statistics(accumulator.statistics(), path)
    print(f"Statistics of {accumulator.frames:,} frames of {corpus.name}: {path}")
    return 0


def _accumulate(recogniser: Recogniser, utterances: Sequence[Utterance]) -> FeatureAccumulator:
    """Sums over the recordings that can be read.

    Raises:
        InputError: none can be read.
    """
    from tqdm import tqdm

    from lact_asr.inference.ttt.statistics import FeatureAccumulator

    accumulator = FeatureAccumulator(recogniser.model.config.vocab_size)
    for utterance in tqdm(utterances, "collecting features", unit="utterance", mininterval=1.0):
        try:
            accumulator.add(*recogniser.observe(utterance.read()))
        except InputError as error:
            tqdm.write(f"{utterance.id}: {error}", file=sys.stderr)
    if not accumulator.frames:
        raise InputError(f"None of the {len(utterances)} recordings could be read.")
    return accumulator


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.feature_statistics"), description=main.__doc__
    )
    add_checkpoint(parser, "; the statistics are written beside it")
    parser.add_argument("--data_dir", type=Path, required=True, help="a corpus that the model was trained on")
    parser.add_argument("--subset", required=True, help="e.g. train-clean-100; no transcripts are used")
    add_dataset_type(parser)
    parser.add_argument(
        "--max_samples",
        type=positive_int,
        default=1000,
        help="so many utterances, spread evenly (default: %(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
