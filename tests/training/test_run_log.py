"""The JSON-lines log, the output folder and the description of a run."""

import json
import math
import resource
from importlib import metadata
from pathlib import Path

import pytest

from lact_asr.atomic_files import write_json
from lact_asr.errors import InputError
from lact_asr.training.run_log import RunLog, describe_run, prepare_output_dir
from lact_asr.training.training_state import Progress


def test_events_are_appended_as_strict_json(tmp_path):
    for step in (1, 2):  # a second log goes on in the same file
        log = RunLog(tmp_path, resumed=Progress(step=step - 1))
        log.write("train", step, {"loss": math.nan if step == 2 else 0.5, "norm": math.inf, "note": None, "epoch": 0})
        log.close()

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "training_log.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [(event["event"], event["step"], event["loss"], event["norm"]) for event in events] == [
        ("train", 1, 0.5, None), ("train", 2, None, None),
    ]  # fmt: skip


def log_of_a_killed_run(folder: Path) -> None:
    """Three steps, an epoch's end after the second one, and half a line."""
    log = RunLog(folder)
    for event, step in (("train", 1), ("train", 2), ("validation", 2), ("train", 3)):
        log.write(event, step, {"loss": float(step), "ids": ["a"]})
    log.close()
    with open(folder / "training_log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "train", "st')


def logged(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "training_log.jsonl").read_text().splitlines()
    return [(event["event"], event["step"]) for event in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("resumed", "kept"),
    [
        (None, 0),
        (Progress(step=1), 1),
        pytest.param(Progress(step=2), 2, id="the checkpoint is from before the validation"),
        pytest.param(Progress(step=2, validated_step=2), 3, id="the checkpoint is from after the validation"),
        (Progress(step=3, validated_step=2), 4),
    ],
)
def test_what_was_logged_after_the_checkpoint_is_cut_off(tmp_path, resumed, kept):
    log_of_a_killed_run(tmp_path)
    RunLog(tmp_path, resumed=resumed).close()
    assert logged(tmp_path) == [("train", 1), ("train", 2), ("validation", 2), ("train", 3)][:kept]


def test_lines_without_room_on_the_disk_are_written_later_and_whole(tmp_path, capsys):
    log = RunLog(tmp_path)
    log.write("train", 1, {"loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (tmp_path / "training_log.jsonl").stat().st_size + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        log.write("train", 2, {"loss": 2.0})
        log.write("train", 3, {"loss": 3.0})
        with pytest.raises(OSError, match="File too large"):
            log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a line of the log could not be written (File too large)" in capsys.readouterr().err
    log.write("train", 4, {"loss": 4.0})
    log.close()
    assert logged(tmp_path) == [("train", step) for step in (1, 2, 3, 4)]


def test_write_json_replaces_and_leaves_nothing_temporary(tmp_path):
    write_json(tmp_path / "a.json", {"path": tmp_path, "word": "naïve"})
    write_json(tmp_path / "a.json", {"word": "naïve"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"word": "naïve"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_output_dir_is_made_with_its_parents_and_left_empty(tmp_path):
    prepare_output_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    prepare_output_dir(tmp_path / "a" / "b")


def test_output_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="not writable"):
        prepare_output_dir(tmp_path / "a")


def test_description_says_what_is_needed_to_repeat_a_run():
    description = describe_run({"seed": 0}, {"total": 5})
    assert description["arguments"] == {"seed": 0}
    assert description["parameters"] == {"total": 5}
    assert {"torch", "transformers", "lhotse"} <= description["packages"].keys()
    assert all(description["packages"].values())


def test_a_checkout_that_is_not_installed_is_described_without_its_version(monkeypatch):
    def version(name: str) -> str:
        if name == "lact-asr":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    packages = describe_run({}, {})["packages"]
    assert packages["lact-asr"] is None
    assert packages["torch"] == "1.0"
