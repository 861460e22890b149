"""Turn a training run into a folder for the Hugging Face hub: ``python -m lact_asr.inference.export_model --help``."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error

DESCRIPTION = """Turn a training run into a folder for the Hugging Face hub: configuration, weights (safetensors), processor,
vocabulary, language model with its tuned weights, and a model card filled from the run's own files.

  lact-asr export checkpoints/hybrid hub/hybrid --results checkpoints/hybrid/results_*.jsonl --license apache-2.0
  lact-asr export checkpoints/hybrid hub/hybrid --push_to_hub USER/hybrid

The second form also uploads it, with the token of `hf auth login`."""


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Write the folder, and upload it if wanted."""
    arguments = _parse(argv)
    from lact_asr.data.atomic_folder import replacing_folder

    _check_name(arguments.push_to_hub)
    if arguments.folder.exists():
        raise InputError(f"{arguments.folder} exists already; remove it or choose another folder.")
    name = arguments.push_to_hub or arguments.folder.name
    with replacing_folder(arguments.folder) as new:
        export(arguments.run, new, name, arguments.results, arguments.license)
    print(arguments.folder)
    if arguments.push_to_hub is not None:
        print(push(arguments.folder, arguments.push_to_hub, arguments.private))
    return 0


def _check_name(name: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if name is not None:
            validate_repo_id(name)
    except HFValidationError:
        raise InputError(f"--push_to_hub takes USER/NAME, not {name!r}.") from None


def export(run: Path, folder: Path, name: str, results: list[Path], license: str | None = None) -> None:
    """Fill a folder that `load_checkpoint` and Transformers' ``from_pretrained`` read.

    Args:
        run: a run's folder, of which the best model is taken, one of its checkpoint files, or a folder of ``save_pretrained``.
        folder: where the files go; must be there.
        name: of the model in its card.
        results: results files of the inference command, for the card's table.
        license: for the card.

    Raises:
        InputError: the checkpoint, a results file or the run's description cannot be used.
    """
    from lact_asr.checkpoint import load_hybrid_checkpoint
    from lact_asr.inference.exporting.model_card import fill_model_card, read_run, read_scored_subset
    from lact_asr.inference.ttt.statistics import STATISTICS_NAME

    scored = [read_scored_subset(path) for path in results]
    run_folder = run.parent if run.is_file() else run
    description = read_run(run_folder)
    checkpoint = load_hybrid_checkpoint(run)
    checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    has_language_model = _copy_language_model(run_folder, folder)
    if (run_folder / STATISTICS_NAME).is_file():
        shutil.copyfile(run_folder / STATISTICS_NAME, folder / STATISTICS_NAME)
    characters = [token for token in checkpoint.processor.vocabulary if len(token) == 1 and token != "|"]
    card = fill_model_card(
        name,
        checkpoint.model.config,
        checkpoint.model.num_parameters(),
        characters,
        description,
        checkpoint.notes,
        scored,
        has_language_model,
        license,
    )
    card.save(folder / "README.md")


def _copy_language_model(run: Path, folder: Path) -> bool:
    """``lm.arpa`` and the weights tuned for it; whether there is one."""
    from lact_asr.atomic_files import write_json
    from lact_asr.inference.companions import LANGUAGE_MODEL_NAME, TUNED_WEIGHTS_NAME, tuned_weights

    path = run / LANGUAGE_MODEL_NAME
    if not path.is_file():
        return False
    shutil.copyfile(path, folder / LANGUAGE_MODEL_NAME)
    if weights := tuned_weights(str(run), str(path)):
        # And not the name of the folder that they were tuned on.
        write_json(folder / TUNED_WEIGHTS_NAME, {"best": weights})
    return True


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a model repository, which is created if it is not there; returns its address.

    Raises:
        InputError: the hub cannot be reached or refuses: no token, no such user, ….
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model exported by lact-asr")
    except Exception as error:  # the hub and its network libraries raise some ten kinds of errors
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise InputError(f"{folder} is complete but could not be uploaded to {name} ({reason}).") from None
    return str(address)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.export_model"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a training run's folder (its best_model.pt), a .pt file of one, or a folder of save_pretrained",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write")
    parser.add_argument(
        "--results", nargs="+", default=[], type=Path, metavar="FILE", help="scored subsets, for the card's table"
    )
    parser.add_argument("--license", default=None, help="for the card, as apache-2.0 or cc-by-4.0")
    parser.add_argument("--push_to_hub", default=None, metavar="USER/NAME", help="also upload it to this repository")
    parser.add_argument("--private", action="store_true", help="a repository that --push_to_hub creates is private")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
