"""A model card (README.md of a hub repository) filled from a run's own files: what was trained, on what, how, and how well it does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.inference.results.results_file import read_results, read_settings
from lact_asr.inference.results.summary import Summary, format_table, summarise

TEMPLATE = """
# {name}

Speech recognition by lact-asr: a Wav2Vec2 convolutional front end, LaCT blocks (softmax attention beside fast weights that each utterance updates,
arXiv 2505.23884) and a CTC head; optionally one step of self-supervised test-time training (TTT) on the utterance itself before decoding.
{parameters:,} parameters, {frame_rate:.0f} frames a second, mono audio at 16 kHz.

## Use

With lact-asr installed from its repository (`pip install -e ".[beam]"`):

```
lact-asr transcribe --checkpoint {name} --audio_file a.wav --use_ttt
```

```python
import lact_asr.auto
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="{name}")
```

`--checkpoint` and `model=` take this folder, too.{language_model}

## Training

{training}

## Results

{results}

## Limits

{limits}
"""

LIMITS = """- It has heard the training data above and no more: other accents, rooms, microphones, topics and languages are recognised worse, or not at all.
- Transcripts are {characters}; numbers are spelled out, and there is no punctuation.
- CTC puts words where it is sure of them: word times are good to some tens of milliseconds, not to the sound's edges.
- TTT can make a transcript worse; the one without it is always given, too."""


@dataclass(frozen=True)
class ScoredSubset:
    """Results of one results file: what was transcribed, how, and how well."""

    subset: str
    system: str
    summary: Summary


def read_scored_subset(path: Path) -> ScoredSubset:
    """Read a results file of the inference command.

    Raises:
        InputError: it cannot be read, has no settings, or none of its recordings has a reference.
    """
    settings = read_settings(path)
    summary = summarise(read_results(path))
    if "subset" not in settings or summary.words is None:
        raise InputError(f"{path} holds no scored corpus subset; its figures cannot go into a model card.")
    return ScoredSubset(settings["subset"], _system(settings), summary)


def _system(settings: Mapping[str, str]) -> str:
    decoding = "greedy" if settings.get("beam_size") == "1" else f"{settings.get('beam_size')} beams"
    if settings.get("lm_path") not in (None, "none", "None"):
        decoding += " and language model"
    recipe = settings.get("ttt_recipe", "None")
    loss = settings.get("ttt_loss_type") if recipe == "None" else "recipe"
    return f"{decoding}, TTT ({loss})" if settings.get("use_ttt") == "True" else decoding


def fill_model_card(
    name: str,
    config: HybridASRConfig,
    parameters: int,
    characters: Sequence[str],
    run: Mapping,
    notes: Mapping,
    scored: Sequence[ScoredSubset],
    has_language_model: bool,
    license: str | None = None,
) -> ModelCard:
    """Write a card.

    Args:
        name: of the model, on the hub or of its folder.
        config: its configuration.
        parameters: how many it has.
        characters: what it spells with.
        run: content of ``run.json``; empty where it is not known.
        notes: the checkpoint's: its step, and of ``best_model.pt`` the WER.
        scored: results, each in a row of the table and of the card's machine-readable index.
        has_language_model: whether ``lm.arpa`` lies beside the model.
        license: an identifier that the hub knows, as "apache-2.0"; None leaves it out.

    Returns:
        The card with its YAML header, as `huggingface_hub` reads it.
    """
    content = TEMPLATE.format(
        name=name,
        parameters=parameters,
        frame_rate=config.frame_rate_hz,
        language_model=" The language model `lm.arpa` is used by the command, and by the pipeline with `lact_asr.inference.exporting.pipeline_decoder`."
        * has_language_model,
        training=_training(run, notes, config),
        results=_results(scored),
        limits=LIMITS.format(characters=f"spelled with {' '.join(characters)}"),
    )
    data = ModelCardData(
        language="en",
        license=license,
        library_name="lact-asr",
        pipeline_tag="automatic-speech-recognition",
        tags=["automatic-speech-recognition", "ctc", "test-time-training", "lact"],
        metrics=["wer"],
        model_name=name,
        eval_results=[result for row in scored for result in _eval_results(row)] or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{content}")


def _training(run: Mapping, notes: Mapping, config: HybridASRConfig) -> str:
    if not run:
        return "The run's description (run.json) was not beside the checkpoint."
    arguments = run["arguments"]
    lines = [
        f"- data: {arguments['train_subset']} of {Path(arguments['data_dir']).name}, validated on {arguments['val_subset']}"
    ]
    if "step" in notes:
        best = f", the lowest validation WER, {notes['wer']:.1%} (greedy, without TTT)" if "wer" in notes else ""
        lines.append(f"- kept: step {notes['step']}{best}")
    lines += [
        f"- test-time training in training: {config.ttt_training}",
        f"- on: {run['machine']}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in run['packages'].items() if version)}, Python {run['python']}",
        f"- commit: {run['git_commit']}",
        f"- command: `{_public_command(run['command'])}`",
    ]
    return "\n".join(lines)


def _public_command(command: Sequence[str]) -> str:
    """The command without the names of the folders of whoever ran it."""
    words = ["python", *(Path(word).name if Path(word).is_absolute() else word for word in command[1:])]
    return shlex.join(words)


def _results(scored: Sequence[ScoredSubset]) -> str:
    if not scored:
        return "None were given."
    return format_table({f"{row.subset}, {row.system}": row.summary for row in scored})


def _eval_results(row: ScoredSubset) -> list[EvalResult]:
    """The error rates of a row, one for each pass; a file may hold a part of its subset, so each says of how many utterances."""
    rates = {row.system: row.summary.words}
    if row.summary.words_without_ttt is not None:
        rates[f"{row.system.partition(', TTT')[0]}, the same without TTT"] = row.summary.words_without_ttt
    utterances = row.summary.utterances - row.summary.failed
    return [
        EvalResult(
            task_type="automatic-speech-recognition",
            dataset_type=row.subset,
            dataset_name=row.subset,
            metric_type="wer",
            metric_name=f"WER of {utterances:,} utterance{'s' * (utterances != 1)}, {system}",  # the hub keeps one entry for a data set, and in it a list of metrics
            metric_value=round(100 * words.rate, 2),
        )
        for system, words in rates.items()
    ]


def read_run(folder: Path) -> dict:
    """``run.json`` of a run's folder; empty where there is none.

    Raises:
        InputError: it cannot be read, or is not what a training run writes.
    """
    path = folder / "run.json"
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        missing = {"command", "arguments", "git_commit", "python", "packages", "machine"} - run.keys()
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{path} cannot be read as a run's description.") from None
    if missing:
        raise InputError(f"{path} lacks {sorted(missing)[0]!r}: it is not a training run's description.")
    return run
