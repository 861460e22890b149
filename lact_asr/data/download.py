"""Fetch LibriSpeech, or a small part of it, from openslr.org: ``python -m lact_asr.data.download --help``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.data.corpus_listings import find_librispeech_folder, subset_names
from lact_asr.errors import InputError, exit_on_input_error

CORPORA = {
    "librispeech": (
        "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
    ),
    "mini_librispeech": ("train-clean-5", "dev-clean-2"),
}  # fmt: skip
"""Subsets of each corpus."""
DEFAULT_URL = "https://www.openslr.org/resources"

DESCRIPTION = """Download subsets of LibriSpeech (960 h to train on, 60 GB) or Mini LibriSpeech (5 h, 0.5 GB) by lhotse's recipe.

  python -m lact_asr.data.download mini_librispeech --data_dir DATA
  python -m lact_asr.data.download librispeech --data_dir DATA --subset train-clean-100,dev-clean

A subset appears as DATA/LibriSpeech/SUBSET when it is complete; those that are there already are left alone. A download
that was interrupted goes on where it stopped when the command is called again."""


def download(corpus: str, data_dir: Path, subsets: str | None = None, base_url: str = DEFAULT_URL) -> list[Path]:
    """Download what is missing of a corpus.

    Args:
        corpus: of `CORPORA`.
        data_dir: subsets go to its folder LibriSpeech; found there, or in `data_dir` itself, they are not fetched again.
        subsets: names with commas; None: all.
        base_url: what comes before ``/12/train-clean-100.tar.gz``; a mirror's, or ``file:///…``.

    Returns:
        The folder of each subset.

    Raises:
        InputError: a subset is of another corpus, cannot be fetched, or cannot be written.
    """
    names = CORPORA[corpus] if subsets is None else subset_names(subsets, data_dir)
    for name in names:
        if name not in CORPORA[corpus]:
            raise InputError(f"{corpus} has no subset {name!r}; it has {', '.join(CORPORA[corpus])}")
    return [find_librispeech_folder(data_dir, name) or _fetch(name, data_dir, base_url) for name in names]


def _fetch(name: str, data_dir: Path, base_url: str) -> Path:
    from lhotse.recipes.librispeech import download_librispeech

    # Unpacked apart, so that nothing takes a subset for whole that is not.
    work, target = data_dir / f".download-{name}", data_dir / "LibriSpeech" / name
    archive = work / f"{name}.tar.gz"
    try:
        unpacked = download_librispeech(work, [name], base_url=base_url)
        target.parent.mkdir(exist_ok=True)
        for text in unpacked.glob("*.TXT"):  # SPEAKERS.TXT and the licence
            os.replace(text, target.parent / text.name)
        os.replace(unpacked / name, target)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        shutil.rmtree(work / "LibriSpeech", ignore_errors=True)
        # What ends early is gone on with the next time; an archive that is not what it should be is of no use.
        if archive.is_file() and (isinstance(error, (tarfile.TarError, zlib.error)) or archive.stat().st_size == 0):
            shutil.rmtree(work)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} cannot be downloaded from {base_url} to {data_dir}: {reason}") from None
    shutil.rmtree(work)
    return target


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Download and say where it is; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.data.download"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", choices=tuple(CORPORA))
    parser.add_argument("--data_dir", type=Path, required=True, help="where the folder LibriSpeech is, or goes")
    parser.add_argument(
        "--subset", default=None, help="subsets with commas, train-960 for three of them (default: all)"
    )
    parser.add_argument("--base_url", default=DEFAULT_URL, help="of OpenSLR or a mirror of it (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for folder in download(arguments.corpus, arguments.data_dir, arguments.subset, arguments.base_url):
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
