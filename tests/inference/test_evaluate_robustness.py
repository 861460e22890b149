"""The robustness evaluation in this process: its files, resuming, what it must not depend on, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lact_asr.checkpoint import save_checkpoint
from lact_asr.data.corruptions import KINDS
from lact_asr.errors import EXIT_BAD_INPUT
from lact_asr.inference.evaluate_robustness import main
from lact_asr.inference.results.results_file import ResultsWriter, read_results
from lact_asr.inference.results.summary import summarise
from lact_asr.inference.robustness.plot import plot_error_rates
from lact_asr.text import build_vocabulary

CONDITIONS = ["clean", "noise:10", "gaussian", "telephone"]
AVERAGE = ["--average", "noise:10", "gaussian"]
MEASURED = ("real_time_factor", "real_time_factor_ratio", "peak_memory_bytes")


# Rounding differs between batches, and AdamW's steps blow it up on a random model: their size is that of no gradient.
STEP = "--use_ttt --ttt_loss_type entropy --ttt_max_entropy 1 --ttt_optimizer sgd --ttt_learning_rate 0.3 --ttt_steps 1"


@pytest.fixture(scope="module")
def systems(saved_checkpoint) -> list[str]:
    plain = f"plain: --checkpoint {saved_checkpoint} --greedy"
    adapted = f"with TTT: --checkpoint {saved_checkpoint} --greedy {STEP}"
    return ["--system", plain, "--system", adapted]


def command_line(
    corpus: Path, output_dir: Path, systems: list[str], conditions: list[str], *flags: object
) -> list[str]:
    places = ["--data_dir", corpus, "--subset", "test-tiny", "--output_dir", output_dir]
    return [
        *map(str, places), *systems, "--conditions", *conditions, "--noise_colour", "pink", "--batch_size", "3",
        *map(str, flags),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(systems, make_librispeech, tmp_path_factory) -> SimpleNamespace:
    """One whole run that several tests look at, not to be changed: its corpus, output folder, and what it printed."""
    corpus = make_librispeech(tmp_path_factory.mktemp("whole") / "corpus")
    folder = corpus.with_name("out")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(command_line(corpus, folder, systems, CONDITIONS, *AVERAGE))
    assert code == 0
    return SimpleNamespace(corpus=corpus, folder=folder, out=printed.getvalue())


@pytest.fixture
def evaluate(systems, librispeech, tmp_path, capsys):
    """Run the command on the tiny corpus: exit code, stdout, stderr and the output folder."""

    def run(*flags: object, systems: list[str] = systems, conditions: list[str] = CONDITIONS) -> SimpleNamespace:
        capsys.readouterr()
        code = main(command_line(librispeech, tmp_path / "out", systems, conditions, *flags))
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err, folder=tmp_path / "out")

    return run


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def timeless(folder: Path) -> dict[str, object]:
    """Everything that a run computed, by file, but times, memory and the command."""
    results = {
        str(path.relative_to(folder)): sorted(
            (result.id, result.hypothesis, result.hypothesis_without_ttt, result.ttt_refusal)
            for result in read_results(path)
        )
        for path in folder.glob("results/*/*.jsonl")
    }
    manifests = {path.name: path.read_bytes() for path in folder.glob("corruptions/*.jsonl")}
    rows = [{key: value for key, value in row.items() if key not in MEASURED} for row in summary(folder)["rows"]]
    return {**results, **manifests, "rows": sorted(rows, key=lambda row: (row["system"], row["condition"]))}


def test_a_system_without_a_loss_says_which_it_takes(evaluate, speaking_model, tmp_path):
    save_checkpoint(tmp_path / "plain.pt", speaking_model(enable_ttt=False), build_vocabulary())
    system = ["--system", f"bare: --checkpoint {tmp_path / 'plain.pt'} --greedy --use_ttt"]
    result = evaluate(systems=system, conditions=["clean"])
    assert result.code == 0, result.err
    assert result.err.count("bare: Without --ttt_loss_type this model takes the TTT loss entropy") == 1


def test_a_whole_run(whole, transcribe, saved_checkpoint, tmp_path):
    rows = summary(whole.folder)["rows"]
    found = {(row["system"], row["condition"]): row for row in rows}
    assert set(found) == {(s, c) for s in ("plain", "with TTT") for c in (*CONDITIONS, "average")}
    assert all(row["group"] == "all" and row["utterances"] == 4 and row["failed"] == 0 for row in rows)

    # The clean row is what the inference command scores.
    output = tmp_path / "r.jsonl"
    corpus = ["--data_dir", whole.corpus, "--subset", "test-tiny", "--output", output]
    assert transcribe("--checkpoint", saved_checkpoint, "--greedy", *STEP.split(), *corpus).code == 0
    alone = summarise(read_results(output))
    clean = found["with TTT", "clean"]
    assert clean["wer"] == alone.words.rate
    assert clean["wer_without_ttt"] == alone.words_without_ttt.rate == found["plain", "clean"]["wer"]
    assert clean["cer"] == alone.characters.rate

    assert len({found["plain", condition]["cer"] for condition in CONDITIONS}) > 1
    assert all(row["peak_memory_bytes"] > 0 and row["real_time_factor"] > 0 for row in rows)
    settings = summary(whole.folder)["settings"]
    assert settings["baseline"] == "plain"
    assert settings["command"].startswith("python -m lact_asr.inference.evaluate_robustness --data_dir ")
    assert settings["versions"]["audiomentations"]


def test_manifests_tell_what_was_done(whole):
    manifests = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (whole.folder / "corruptions").iterdir()
    }
    assert set(manifests) == {"clean", "noise_10", "gaussian", "telephone"}
    for lines in manifests.values():
        assert [line["utterance"] for line in lines] == ["7-1-0000", "7-1-0001", "7-2-0000", "7-2-0001"]
        assert [line["position"] for line in lines] == [0, 1, 2, 3]
        assert {line["seed"] for line in lines} == {0}
    assert len({line["parameters"]["start_sample"] for line in manifests["noise_10"]}) == 4
    assert manifests["gaussian"][0]["parameters"] == {"delta": 0.005}
    assert manifests["noise_10"][0]["condition"] == "noise:10"


def test_summaries_and_report_say_the_same(whole):
    rows = summary(whole.folder)["rows"]
    with (whole.folder / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["system"] for row in table] == [row["system"] for row in rows]
    assert [float(row["wer"]) for row in table] == [row["wer"] for row in rows]
    page = (whole.folder / "report.html").read_text()
    for name in (*CONDITIONS, "average", "plain", "with TTT"):
        assert f">{name}<" in page
        assert f"{name} " in whole.out
    for row in rows:
        assert f"{100 * row['wer']:.1f} ({100 * row['wer_low']:.1f} to {100 * row['wer_high']:.1f})" in page
    assert "--ttt_steps 1" in page
    assert page.count("<svg") == 1


def test_the_report_refers_to_nothing_outside(whole):
    page = (whole.folder / "report.html").read_text()
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\((?!#)|\bsrc=", page)
    assert {target[0] for target in re.findall(r'href="([^"]*)"', page)} <= {"#"}
    # Names of XML's namespaces are no addresses that anything is fetched from.
    assert all(place == "http://www.w3.org" for place in re.findall(r"https?://[^/\"]*", page))


def test_names_in_the_report_are_escaped(evaluate, saved_checkpoint):
    page = (
        evaluate(
            systems=["--system", f"<b>bold & beautiful: --checkpoint {saved_checkpoint} --greedy"], conditions=["clean"]
        )
        .folder.joinpath("report.html")
        .read_text()
    )
    assert "<b>" not in page
    assert "&lt;b&gt;bold &amp; beautiful" in page


@pytest.mark.parametrize("cut_after", [2, 9])
def test_a_run_that_was_cut_goes_on_to_the_same_files(evaluate, whole, monkeypatch, tmp_path, cut_after):
    written = []
    write = ResultsWriter.write

    def interrupted(writer, result):
        if len(written) == cut_after:
            raise KeyboardInterrupt
        written.append(result.id)
        write(writer, result)

    monkeypatch.setattr(ResultsWriter, "write", interrupted)
    assert evaluate(*AVERAGE).code == 130
    torn = tmp_path / "out" / "corruptions" / "clean.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"utterance": "7-')

    def watched(writer, result):
        written.append(result.id)
        write(writer, result)

    monkeypatch.setattr(ResultsWriter, "write", watched)
    resumed = evaluate("--resume", *AVERAGE)
    assert resumed.code == 0
    assert len(written) == 2 * 4 * len(CONDITIONS)
    assert timeless(resumed.folder) == timeless(whole.folder)
    assert not list(resumed.folder.rglob("*.tmp"))

    rows = summary(resumed.folder)["rows"]
    again = evaluate("--resume", *AVERAGE)
    assert (again.code, len(written)) == (0, 2 * 4 * len(CONDITIONS))
    assert summary(again.folder)["rows"] == rows


def test_results_do_not_depend_on_batches_or_the_order_of_systems(evaluate, whole, systems):
    other = evaluate("--batch_size", 1, "--baseline", "plain", *AVERAGE, systems=systems[2:] + systems[:2])
    assert timeless(other.folder) == timeless(whole.folder)


def test_a_report_is_not_replaced_unasked(evaluate):
    run = evaluate(conditions=["clean", "telephone"])
    before = timeless(run.folder)
    again = evaluate(conditions=["clean"])
    assert again.code == EXIT_BAD_INPUT
    assert "out holds a report already: --resume goes on with it, --overwrite replaces it" in again.err
    assert timeless(run.folder) == before
    assert evaluate("--overwrite", conditions=["clean"]).code == 0
    assert timeless(run.folder) != before


def test_a_system_whose_step_was_forgotten_is_told_so(evaluate, saved_checkpoint):
    system = ["--system", f"mine: --checkpoint {saved_checkpoint} --greedy --ttt_loss_type entropy --ttt_steps 4"]
    result = evaluate(systems=system, conditions=["clean"])
    assert result.code == 0, result.err
    assert "mine: Without --use_ttt nothing is adapted; without effect: --ttt_" in result.err


def test_resuming_with_another_seed_is_refused(evaluate):
    run = evaluate(conditions=["gaussian"])
    before = (run.folder / "corruptions" / "gaussian.jsonl").read_bytes()
    again = evaluate("--resume", "--seed", 1, conditions=["gaussian"])
    assert again.code == EXIT_BAD_INPUT
    assert "was written with corruption_seed 0, not 1" in again.err
    assert (run.folder / "corruptions" / "gaussian.jsonl").read_bytes() == before


def test_a_bad_recording_is_left_out_of_all_systems(evaluate, librispeech):
    (broken,) = librispeech.rglob("7-1-0001.flac")
    broken.write_bytes(broken.read_bytes()[:3_000])
    run = evaluate(conditions=["clean"])
    assert run.code == 0
    assert [(row["utterances"], row["failed"]) for row in summary(run.folder)["rows"]] == [(3, 1), (3, 1)]
    assert run.err.count("7-1-0001: ") == 2
    assert len((run.folder / "corruptions" / "clean.jsonl").read_text().splitlines()) == 3


def test_groups_of_a_manifest(evaluate, librispeech):
    lines = [
        {"audio_filepath": str(path), "text": "A DOG SAW THE CAT", "age": age}
        for path, age in zip(sorted(librispeech.rglob("*.flac")), (6, 30, 10, 40), strict=True)
    ]
    (librispeech / "test-tiny.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = evaluate(
        "--dataset_type", "manifest", "--groups", "children: age<=13", "adults: age>=15", conditions=["clean"]
    )
    assert run.code == 0
    rows = summary(run.folder)["rows"]
    assert [(row["group"], row["utterances"]) for row in rows[::2]] == [("all", 4), ("children", 2), ("adults", 2)]
    assert sum(row["words"] for row in rows[2::2]) == rows[0]["words"] == 20
    page = (run.folder / "report.html").read_text()
    assert "Group: children" in page
    assert page.count("<svg") == 3
    assert len(run.out.split("children: 2 utterances")) == 2


def test_speakers_are_resampled_whole_where_wanted(evaluate, librispeech):
    assert "these utterances are of one" in evaluate("--resample", "speaker").err
    paths = sorted(librispeech.rglob("*.flac"))
    lines = [
        {"audio_filepath": str(path), "text": "A DOG SAW THE CAT" * (number + 1), "speaker": "one" if number else "two"}
        for number, path in enumerate(paths)
    ]
    (librispeech / "test-tiny.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reports = {}
    for unit in ("utterance", "speaker"):
        run = evaluate("--dataset_type", "manifest", "--resample", unit, "--overwrite", conditions=["clean"])
        assert run.code == 0, run.err
        reports[unit] = summary(run.folder)
    by_utterance, by_speaker = (reports[unit]["rows"][0] for unit in ("utterance", "speaker"))
    assert by_speaker["wer"] == by_utterance["wer"]
    assert reports["speaker"]["settings"]["resampled"] == "speaker"


def test_samples_are_spread_over_the_corpus(evaluate):
    run = evaluate("--max_samples", 2, conditions=["clean"])
    lines = (run.folder / "corruptions" / "clean.jsonl").read_text().splitlines()
    assert [json.loads(line)["utterance"] for line in lines] == ["7-1-0000", "7-2-0000"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--subset", "dev-clean"], "no subset 'dev-clean'"),
        (["--average", "noise:5"], "--average names noise:5, which is not one of --conditions"),
        (["--conditions", "noise:loud"], "needs a number after the colon"),
        (["--conditions", "clean", "clean"], "two of the condition 'clean'"),
        (["--baseline", "nobody"], "--baseline 'nobody' is no --system; there is plain, with TTT"),
        (["--groups", "children: age<=13"], "no utterance has the field 'age'"),
        (["--max_samples", "0"], "--max_samples must be 1 or more"),
        (["--batch_size", "0"], "--batch_size must be 1 or more, not 0."),
        (["--system", "with_TTT: --checkpoint x.pt"], "two of the system 'with_TTT'"),
        (["--system", "nameless"], 'A system is written "NAME: FLAGS"'),
        (["--system", "x: --greedy"], "system 'x' cannot be used: the following arguments are required: --checkpoint"),
        (["--system", "x: --checkpoint a.pt --gredy"], "unrecognized arguments: --gredy"),
        (["--system", "x: --checkpoint a.pt --ttt_loss_type none"], "flags of the system 'x' cannot be used: "),
        (["--system", "x: --checkpoint a.pt --output r.jsonl"], "has --output, which is for all systems"),
        (["--system", "x: --checkpoint a.pt --batch=4"], "has --batch, which is for all systems"),
        (["--system", "x: --checkpoint a.pt --lm_path 'a"], "cannot be split: No closing quotation"),
        (["--system", "x: --help"], "they only ask for help"),
        (["--system", "x: --checkpoint missing.pt"], "missing.pt"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(evaluate, flags, sentence):
    run = evaluate(*flags)
    assert run.code == EXIT_BAD_INPUT
    (line,) = run.err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert not run.folder.exists()


def test_help_tells_every_kind_of_condition(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    page = capsys.readouterr().out
    for name, kind in KINDS.items():
        assert re.search(rf"^  {name}\S* +{re.escape(kind.meaning)}$", page, re.MULTILINE)


def test_noise_needs_a_source(systems, librispeech, tmp_path, capsys):
    corpus = ["--data_dir", str(librispeech), "--subset", "test-tiny", "--output_dir", str(tmp_path / "out")]
    assert main([*corpus, *systems, "--conditions", "noise:5"]) == EXIT_BAD_INPUT
    assert "The condition noise needs --noise_dir or --noise_colour." in capsys.readouterr().err


def test_a_missing_library_is_named_before_any_work(evaluate, monkeypatch):
    for module in ("report", "plot"):
        monkeypatch.delitem(sys.modules, f"lact_asr.inference.robustness.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = evaluate()
    assert run.code == EXIT_BAD_INPUT
    assert run.err == 'error: This command needs matplotlib: pip install "lact-asr[robustness]".\n'


def test_a_file_in_the_way_of_the_output(evaluate, tmp_path):
    (tmp_path / "out").write_text("")
    run = evaluate(conditions=["clean"])
    assert run.code == EXIT_BAD_INPUT
    assert run.err.splitlines()[-1] == f"error: {tmp_path / 'out'} is not a folder"


def test_a_manifest_that_is_none(evaluate):
    run = evaluate(conditions=["clean"])
    (run.folder / "corruptions" / "clean.jsonl").write_text("not json\n")
    again = evaluate("--resume", conditions=["clean"])
    assert again.code == EXIT_BAD_INPUT
    assert "clean.jsonl is not a corruption manifest" in again.err.splitlines()[-1]


def test_error_bars_survive_intervals_beside_their_rate():
    row = {"system": "a", "condition": "clean", "wer": 0.5, "wer_low": 0.6, "wer_high": 0.7}
    assert plot_error_rates([row]).startswith("<svg")
