"""Pack a corpus into a few large files for storage that dislikes many small ones: ``python -m lact_asr.data.make_shar --help``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.errors import exit_on_input_error
from lact_asr.shared_flags import add_dataset_type, positive_int

DESCRIPTION = """Pack subsets of a corpus into Shar folders (lhotse's format: a thousand recordings share one tar file).

  python -m lact_asr.data.make_shar --data_dir LIBRISPEECH --subset train-960,dev-clean --output_dir SHAR
  python training/train_hybrid_asr.py --dataset_type shar --data_dir SHAR --train_subset train-960 --val_subset dev-clean …

Every recording is decoded on the way, so what cannot be read is found and left out, by name, in SUBSET.json beside the
folder. FLAC files of 16 kHz, and with --audio_format opus Opus files, are copied as they are; everything else is encoded.
A folder appears when it is complete. A command that was interrupted goes on where it stopped when it is called again."""


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Convert each subset; returns the exit code."""
    arguments = _parse(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.data.corpora import load_corpus
    from lact_asr.data.corpus_listings import subset_names
    from lact_asr.data.shar_writing import write_shar

    for name in subset_names(arguments.subset, arguments.data_dir):
        corpus = load_corpus(arguments.data_dir, [name], arguments.dataset_type)
        target = arguments.output_dir / Path(name).name.removesuffix(".jsonl")
        left_out = write_shar(
            corpus, target, arguments.audio_format, arguments.shard_size, arguments.num_workers, arguments.keep_order
        )
        print(
            f"{target}: {len(corpus.cuts) - len(left_out):,} utterances, {len(corpus.problems) + len(left_out):,} left out"
        )
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.data.make_shar"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="the corpus, as for training")
    parser.add_argument(
        "--subset", required=True, help="subset, or several with commas; train-960 is all of LibriSpeech"
    )
    add_dataset_type(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the folder of each subset goes")
    parser.add_argument(
        "--audio_format",
        choices=("flac", "opus"),
        default="flac",
        help="flac loses nothing of 16-bit audio; opus takes about a fifth of the space (default: %(default)s)",
    )
    parser.add_argument(
        "--shard_size", type=positive_int, default=1000, help="recordings in a tar file (default: %(default)s)"
    )
    parser.add_argument(
        "--keep_order",
        action="store_true",
        help="keep the corpus's order, speaker after speaker; by default a shard is a random sample of the subset, so that "
        "training batches mix speakers",
    )
    parser.add_argument(
        "--num_workers", type=positive_int, default=os.cpu_count(), help="processes (default: one a core)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
