"""Costs of long recordings: every system is measured, and what does not fit is said."""

from __future__ import annotations

import json

from benchmarks.long_recordings import Cost, is_worth_trying, main, table


def test_every_system_is_measured(tmp_path, capsys):
    config = {"conv_dim": [8] * 7, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 64, "num_attn_heads": 2,
              "num_lact_heads": 2, "lact_fw_hidden_dim": 12, "encoder_target_ds_factor": 8}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--config_path", str(tmp_path / "config.json"), "--output_dir", str(tmp_path / "out")]
    assert main([*flags, "--minutes", "0.25", "1", "--max_gib", "2"]) == 0
    costs = json.loads((tmp_path / "out" / "long_recordings.json").read_text())["costs"]
    assert [cost["minutes"] for cost in costs] == 4 * [0.25, 1]
    assert all(cost["seconds_a_second"] > 0 and cost["peak_bytes"] > 0 for cost in costs)
    assert capsys.readouterr().out == (tmp_path / "out" / "table.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "long_recordings.json",
        "long_recordings.png",
        "table.md",
    ]


def test_what_did_not_fit_is_in_the_table():
    costs = [
        Cost("a", 1, 0.01, 2**20),
        Cost("a", 5, reason="does not fit into 4 GiB (RuntimeError …)"),
        Cost("b", 1, 0.02, 2**21),
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(costs).splitlines()]
    assert rows[0] == ["minutes", "a", "b"]
    assert rows[2:] == [["1", "0.0100 s, 1 MiB", "0.0200 s, 2 MiB"], ["5", "does not fit into 4 GiB", "–"]]


def test_what_would_take_too_long_is_not_tried():
    whole, pieces = (Cost(name, 10, seconds_a_second=0.01) for name in ("hybrid, whole", "hybrid, cut at silence"))
    assert [is_worth_trying(whole, 20, seconds) for seconds in (23, 25)] == [False, True]
    assert [is_worth_trying(pieces, 20, seconds) for seconds in (11, 13)] == [False, True]
    assert not is_worth_trying(Cost("hybrid, whole", 10, reason="does not fit"), 20, 1e9)
