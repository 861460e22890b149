"""Recipes of test-time training as JSON files, in a module that imports nothing heavy: `--help` lists them at once."""

from __future__ import annotations

import json
from pathlib import Path

from lact_asr.errors import InputError

RECIPES_FOLDER = Path(__file__).resolve().parents[1] / "recipes"


def recipe_summaries() -> dict[str, str]:
    """Name -> one line, of the recipes that come with the package."""
    return {path.stem: read_recipe(path.stem)["summary"] for path in sorted(RECIPES_FOLDER.glob("*.json"))}


def read_recipe(name_or_path: str) -> dict:
    """The content of a recipe by name, or of a file.

    Raises:
        InputError: no such recipe, or a file that holds no JSON object.
    """
    path = RECIPES_FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(file.stem for file in sorted(RECIPES_FOLDER.glob("*.json")))
        raise InputError(f"There is no TTT recipe {name_or_path!r}: choose {known}, or give a JSON file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The TTT recipe {path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"The TTT recipe {path} is not a JSON object.")
    return content
