"""From a grid to commands: what is shared, what is done anew, and what is refused before anything runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

import pytest

from ablations.grid import read_grid
from ablations.plan import ROOT, Plan, plan_grid
from lact_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.model_sizes import count_parameters, meta_model

GRID = """
question: Is it better?
corpus: {hours: 0.1, seed: 3}
config: {base: configs/tiny.json, window_size: 8}
train: {max_steps: 10, train_subset: train-generated, enable_ttt: true, mixed_precision: false}
inference: {greedy: true, use_ttt: true}
evaluate: {subset: test-generated, conditions: [clean, "noise:20"], noise_colour: pink}
axes:
  steps: {inference.ttt_steps: [1, 4]}
baseline: "1"
"""


@pytest.fixture
def plan(tmp_path) -> Callable[..., Plan]:
    """``plan(text)``: the plan of a grid of this text, to run in ``tmp_path / "out"``."""

    def call(text: str) -> Plan:
        (tmp_path / "grid.yaml").write_text(text)
        return plan_grid(read_grid(tmp_path / "grid.yaml"), tmp_path / "out")

    return call


def trainings(plan: Plan) -> set[str]:
    return {step.folder.name for step in plan.steps if "trainings" in step.folder.parts}


def evaluations(plan: Plan) -> set[str]:
    return {step.folder.name for _, step in plan.evaluations}


def test_commands_are_those_that_a_user_types(plan, tmp_path):
    corpus, training, first, second = plan(GRID).steps
    data, model = corpus.output, training.output
    assert corpus.command == f"python -m lact_asr.data.generated_speech --output_dir {data} --hours 0.1 --seed 3"
    assert training.command == (
        f"python training/train_hybrid_asr.py --config_path {training.folder}/config.json --data_dir {data} --output_dir {model} "
        "--resume_from_checkpoint auto --max_steps 10 --train_subset train-generated --enable_ttt --seed 0"
    )
    system = f"4: --checkpoint {model}/best_model.pt --greedy --use_ttt --ttt_steps 4 --seed 0"
    assert second.command == (
        f"python -m lact_asr.inference.evaluate_robustness --data_dir {data} --subset test-generated --conditions clean noise:20 --noise_colour pink "
        f"--output_dir {second.output} --system {shlex.quote(system)}"
    )
    assert training.config == {**json.loads((ROOT / "configs/tiny.json").read_text()), "window_size": 8}
    assert training.needs == (corpus,)
    assert set(first.needs) == {corpus, training}
    assert all(step.folder.is_relative_to(tmp_path / "out") for step in (corpus, training, first, second))


SAME_TRAINING = {
    "other inference": ("greedy: true", "greedy: true, beam_size: 4"),
    "other conditions": ("clean,", "mp3,"),
    "a flag left out in another way": (", mixed_precision: false", ", freeze_encoder: null"),
    "flags in another order": ("max_steps: 10, train_subset: train-generated", "train_subset: train-generated, max_steps: 10"),
    "a default written out": ("window_size: 8", "window_size: 8, rope_theta: 10000.0"),
    "a value of the file written out": ("window_size: 8", "window_size: 8, hidden_size: 160"),
}  # fmt: skip
OTHER_TRAINING = {
    "a flag": ("max_steps: 10", "max_steps: 11"),
    "another flag": ("enable_ttt: true", "enable_ttt: false"),
    "a configuration key": ("window_size: 8", "window_size: 9"),
    "the file's own window": (", window_size: 8", ""),
    "another corpus": ("hours: 0.1", "hours: 0.2"),
    "a seed": ("baseline:", "seeds: [1]\nbaseline:"),
    "fine-tuning": ("inference:", "finetune: {max_steps: 5}\ninference:"),
}


@pytest.mark.parametrize("name", SAME_TRAINING)
def test_what_does_not_decide_the_training_does_not_repeat_it(name, plan):
    assert SAME_TRAINING[name][0] in GRID
    assert trainings(plan(GRID.replace(*SAME_TRAINING[name]))) == trainings(plan(GRID))


@pytest.mark.parametrize("name", OTHER_TRAINING)
def test_what_decides_the_training_repeats_it_with_all_evaluations(name, plan):
    assert OTHER_TRAINING[name][0] in GRID
    before, after = plan(GRID), plan(GRID.replace(*OTHER_TRAINING[name]))
    assert not evaluations(after) & evaluations(before)
    assert trainings(after) != trainings(before)


def test_cells_keep_their_results_when_others_join(plan):
    more = plan(GRID.replace("[1, 4]", "[1, 4, 16]"))
    assert evaluations(plan(GRID)) < evaluations(more)
    assert trainings(plan(GRID)) == trainings(more)


def test_cells_that_differ_in_inference_share_a_training_and_others_do_not(plan):
    assert len(trainings(plan(GRID))) == 1
    windows = plan(GRID.replace("axes:", "axes:\n  window: {config.window_size: [8, 16, 32]}").replace('"1"', "8, 1"))
    assert len(trainings(windows)) == 3
    assert len(windows.evaluations) == 6


def test_fine_tuning_starts_from_a_training_that_its_own_flags_do_not_change(plan):
    text = GRID.replace("inference:", "finetune: {peak_lr: 1e-4}\ninference:", 1)
    tuned = plan(text.replace("axes:", "axes:\n  steps of tuning: {finetune.max_steps: [5, 6]}").replace('"1"', "5, 1"))
    corpus, first, *rest = tuned.steps
    tunings = [step for step in rest if "trainings" in step.folder.parts]
    assert trainings(plan(GRID)) == {first.folder.name}
    assert [step.needs for step in tunings] == [(corpus, first)] * 2
    for step, max_steps in zip(tunings, (5, 6), strict=True):
        assert (
            f"--max_steps {max_steps} --train_subset train-generated --enable_ttt --seed 0 --peak_lr 1e-4"
            in step.command
        )
        assert step.command.endswith(f"--init_checkpoint {first.output}/best_model.pt")


def test_a_ready_checkpoint_is_evaluated_as_it_is(plan, tmp_path):
    path = tmp_path / "ready.pt"
    path.write_bytes(b"one model")
    text = GRID.replace("config: {base: configs/tiny.json, window_size: 8}\n", "").replace(
        "train: {max_steps: 10, train_subset: train-generated, enable_ttt: true, mixed_precision: false}", f"checkpoint: {path}"
    )  # fmt: skip
    before = plan(text)
    assert trainings(before) == set()
    assert all(f"--checkpoint {path} " in step.command for _, step in before.evaluations)
    path.write_bytes(b"another")
    assert not evaluations(plan(text)) & evaluations(before)
    path.unlink()
    with pytest.raises(InputError, match=r"there is no checkpoint .*ready\.pt"):
        plan(text)


def test_a_folder_of_recordings_in_place_of_a_generated_corpus(plan, tmp_path):
    given = plan(GRID.replace("{hours: 0.1, seed: 3}", f"{{data_dir: {tmp_path}, dataset_type: manifest}}"))
    assert not any("corpora" in step.folder.parts for step in given.steps)
    for step in given.steps:
        assert f"--data_dir {tmp_path} --dataset_type manifest" in step.command


MISTAKES = {
    "a training flag": (("max_steps: 10", "max_stages: 10"), "unrecognized arguments: --max_stages 10"),
    "a training flag's value": (("max_steps: 10", "max_steps: ten"), "argument --max_steps: 'ten' is not a whole number"),
    "an inference flag": (("greedy: true", "greedily: true"), "unrecognized arguments: --greedily"),
    "inference flags that do not go together": (("greedy: true", "greedy: true, lm_path: a.arpa"), "--greedy uses no language model"),
    "a configuration key": (("window_size", "windowsize"), "Unknown configuration key 'windowsize' in 'config'"),
    "a configuration value": (("window_size: 8", "window_size: wide"), "configuration key 'window_size' is 'wide'"),
    "a configuration file": (("tiny.json", "teeny.json"), "There is no configuration file"),
    "what the runner sets": (("max_steps: 10", "max_steps: 10, output_dir: here"), "'train.output_dir' is set by the runner"),
    "the checkpoint": (("greedy: true", "greedy: true, checkpoint: a.pt"), "'inference.checkpoint' is set by the runner"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_anything_runs(name, plan, capsys):
    change, message = MISTAKES[name]
    with pytest.raises(InputError) as error:
        plan(GRID.replace(*change))
    assert str(error.value).startswith("The cell '1' of grid: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", sorted(ROOT.glob("ablations/grids/*.yaml")), ids=lambda path: path.stem)
def test_shipped_grids_have_flags_and_keys_that_exist(path, tmp_path):
    for quick in (False, True):
        grid = read_grid(path, quick)
        plan = plan_grid(grid, tmp_path)
        assert len(plan.evaluations) == len(grid.cells())


def test_attention_only_has_as_many_parameters_as_the_model_with_fast_weights():
    axes = read_grid(ROOT / "ablations/grids/fast_weights.yaml").axes["model"]
    values = json.loads((ROOT / "configs/tiny.json").read_text())

    def parameters(label: str) -> int:
        config = HybridASRConfig.from_values({**values, **axes[label].get("config", {})})
        return sum(count_parameters(meta_model(config)).values())

    assert parameters("attention only") == pytest.approx(parameters("four heads"), rel=0.01)
    assert parameters("one head") == pytest.approx(parameters("four heads"), rel=0.01)
