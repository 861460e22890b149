"""The JSON-lines log, the output folder and the description of a run."""

import json
import math

import pytest

from lact_asr.errors import InputError
from lact_asr.json_files import write_json
from lact_asr.training.run_log import RunLog, describe_run, prepare_output_dir


def test_events_are_appended_as_strict_json(tmp_path):
    for step in (1, 2):  # a second log goes on in the same file, as a resumed run does
        log = RunLog(tmp_path)
        log.write("train", step, {"loss": math.nan if step == 2 else 0.5, "norm": math.inf, "note": None, "epoch": 0})
        log.close()

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "training_log.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [(event["event"], event["step"], event["loss"], event["norm"]) for event in events] == [
        ("train", 1, 0.5, None), ("train", 2, None, None),
    ]  # fmt: skip


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
