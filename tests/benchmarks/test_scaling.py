"""The cost model: hours and memory by hand, measured rates in place of assumed ones, and a document that says what was computed."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.cost_fit import CostFit
from benchmarks.scaling import (
    BEGIN,
    END,
    PREDICTIONS,
    Activations,
    Assumptions,
    Model,
    longest_batch,
    main,
    predict,
    read_model,
    replaced_block,
    tables,
    with_fitted_utilisation,
    with_measured_rates,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
ACTIVATIONS = Activations("Triton kernels", False, fixed_bytes=1e9, bytes_per_second=1e8)
MODEL = Model(parameters=1_000_000, blocks=4, flops=1e12, activations=(ACTIVATIONS,))
ASSUMED = Assumptions(
    corpus_hours=10, epochs=2, utterance_seconds=10, utterances=4, matmul_flops_per_second=1e13, utilisation=(0.1, 0.4),
    link_bytes_per_second=(1e9, 1e8), loader_speed=100,
)  # fmt: skip


def measured(device: str) -> dict:
    return {
        "device": device, "commit": "abc", "matmul_flops_per_second": 2e13,
        "rows": [{"size": "paper", "system": "hybrid", "utilisation": 0.3}, {"size": "paper", "system": "Wav2Vec2ForCTC", "utilisation": 0.5}],
    }  # fmt: skip


def test_one_gpu_takes_its_operations_over_its_rate():
    one = predict(MODEL, ASSUMED, 1)
    # 72,000 s of audio in steps of 40 s: 1,800 steps of 4e12 operations.
    assert one.hours == (pytest.approx(1_800 * 4e12 / 4e12 / 3600), pytest.approx(1_800 * 4e12 / 1e12 / 3600))
    assert one.audio_hours_per_hour == (pytest.approx(40), pytest.approx(10))
    assert one.loader_cores == (pytest.approx(0.4), pytest.approx(0.1))
    assert one.ddp_bytes == one.fsdp_bytes == pytest.approx(16e6)


def test_sums_of_gradients_are_hidden_at_best_and_added_at_worst():
    sixteen = predict(MODEL, replace(ASSUMED, link_bytes_per_second=(1e9, 1e6)), 16)
    all_reduce = 2 * 4e6 * 15 / 16 / 1e6  # 7.5 s, more than the 1 s of computing
    steps = 1_800 / 16
    assert sixteen.hours == (pytest.approx(steps * all_reduce / 3600), pytest.approx(steps * (4 + all_reduce) / 3600))
    assert predict(MODEL, ASSUMED, 8).hours[0] == pytest.approx(1_800 / 8 / 3600)
    assert sixteen.ddp_bytes == pytest.approx(16e6 + 4e6)
    assert sixteen.fsdp_bytes == pytest.approx(1e6 + 2e6)


def test_the_longest_batch_is_of_whole_utterances_beside_the_states():
    assumed = replace(ASSUMED, gpu_bytes=20e9, usable=0.5)  # 10 GB for utterances of 2 GB
    assert longest_batch(ACTIVATIONS, assumed, state_bytes=0) == 5 * 10
    assert longest_batch(ACTIVATIONS, assumed, state_bytes=1e9) == 4 * 10


def test_a_gpus_measured_rates_replace_assumed_ones_and_a_cpus_do_not():
    assert with_measured_rates(ASSUMED, measured("CPU x86_64")) == ASSUMED
    known = with_measured_rates(ASSUMED, measured("NVIDIA H200"))
    assert known.utilisation == (0.3, 0.3)
    assert known.matmul_flops_per_second == 2e13
    assert "measured on one NVIDIA H200" in known.source


def test_a_fit_to_cpus_gives_the_share_of_the_gpus_rate_with_its_error():
    fit = CostFit(operations=2.0, passes=3.0, points=4, median_error=0.1, largest_error=0.25)
    carried = with_fitted_utilisation(replace(ASSUMED, copy_bytes_per_second=1e10), MODEL, fit)
    # 4e12 operations at 1e13 a second, twice: 0.8 s; 4 utterances of 2 GB and 16 MB of states, three times at 1e10: 2.4048 s
    share = 0.4 / (0.8 + 2.4048)
    assert carried.utilisation == (pytest.approx(share / 1.25), pytest.approx(share * 1.25))


def test_a_document_is_written_between_its_marks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.scaling.count_model", lambda *_: MODEL)
    document = tmp_path / "scaling.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["--docs", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}\n**Prediction**")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert read_model(json.loads((tmp_path / PREDICTIONS).read_text())["model"]) == MODEL
    document.write_text("no marks")
    assert main(["--docs", str(document)]) == 2
    assert "has no lines" in capsys.readouterr().err


def test_no_measured_file_is_one_sentence(tmp_path, capsys):
    assert main(["--measured", str(tmp_path / "nothing.json")]) == 2
    assert "is not a training.json" in capsys.readouterr().err


def test_the_document_says_what_was_computed():
    content = json.loads((DOCS / PREDICTIONS).read_text())
    text = (DOCS / "scaling.md").read_text()
    assert replaced_block(text, list(tables(content))) == text
    model, assumed = read_model(content["model"]), Assumptions(**content["assumptions"])
    for row in content["predictions"]:
        assert json.loads(json.dumps(asdict(predict(model, assumed, row["gpus"])))) == row
    assert len(re.findall(r"^\| (1|8|64) \|", text, flags=re.MULTILINE)) == 3
