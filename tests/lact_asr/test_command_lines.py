"""`--help` and mistyped flags answer at once: the command lines are read without PyTorch or Transformers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lact_asr import run_benchmark
from lact_asr.command_line import COMMANDS, main
from lact_asr.errors import InputError
from lact_asr.run_benchmark import find_benchmarks


def test_help_imports_nothing_heavy():
    """In one process, for every command: what one of them imported is there to be seen after the last."""
    code = (
        "import sys\nfrom lact_asr.command_line import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try:\n        main([*name.split(), '--help'])\n    except SystemExit:\n        pass\n"
        "    print('heavy:', sorted({'torch', 'transformers', 'audiomentations', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    heavy = [line for line in result.stdout.splitlines() if line.startswith("heavy:")]
    assert heavy == ["heavy: []"] * len(COMMANDS)
    for flag in ("--ttt_recipe", "--conditions", "--output_format", "--base_url", "--shard_size"):
        assert flag in result.stdout


# The console command


def said(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``lact-asr`` in this process."""
    try:
        code = main(list(argv))
    except SystemExit as stopped:
        code = stopped.code
    return (code, *capsys.readouterr())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_under_its_own_name(capsys, name):
    code, out, _ = said(capsys, *name.split(), "--help")
    assert code == 0
    assert out.startswith(f"usage: lact-asr {name} ")


def test_names_and_groups_are_listed(capsys):
    everything = said(capsys, "--help")
    assert everything == said(capsys)
    assert everything[0] == 0
    assert all(f"\n  {name} " in everything[1] for name in COMMANDS)
    code, group, _ = said(capsys, "lm", "--help")
    assert (code, "\n  lm build " in group, "transcribe " in group) == (0, True, False)


@pytest.mark.parametrize(
    ("given", "nearest"), [("transcirbe a.wav", "transcribe"), ("lm bulid", "lm build"), ("dta check", "data check")]
)
def test_an_unknown_command_is_answered_with_the_nearest(capsys, given, nearest):
    code, out, err = said(capsys, *given.split())
    assert (code, out) == (2, "")
    assert f"no command {given!r}; the nearest is {nearest!r}" in err
    assert len(err.splitlines()) == 1


def test_flags_before_a_command_are_refused(capsys):
    assert "needs a command before --checkpoint" in said(capsys, "--checkpoint", "x")[2]
    assert "needs a command before --order" in said(capsys, "lm", "--order", "3")[2]


def test_errors_of_a_command_are_its_own(capsys):
    code, _, err = said(capsys, "transcribe", "--checkpoint", "x")
    assert code == 2
    assert "Give exactly one of --audio_file" in err


def test_version_and_the_module(tmp_path):
    command = [sys.executable, "-m", "lact_asr", "--version"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("lact-asr ")


def test_benchmarks_are_run_from_the_checkout(capfd, tmp_path, monkeypatch):
    assert "kernels" in find_benchmarks(run_benchmark.CHECKOUT)
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "times.py").write_text(
        '"""How long it takes."""\nimport sys\nif __name__ == "__main__":\n    print(*sys.argv[1:])\n    sys.exit(3)\n'
    )
    (folder / "timing.py").write_text('"""What benchmarks share."""\n')
    monkeypatch.setattr(run_benchmark, "CHECKOUT", tmp_path)
    assert said(capfd, "bench", "times", "--size", "5")[:2] == (3, "--size 5\n")
    assert "times  How long it takes." in said(capfd, "bench", "--help")[1]
    assert said(capfd, "bench", "timing")[0] == 2


def test_without_a_checkout_there_are_no_benchmarks(tmp_path: Path):
    with pytest.raises(InputError, match="pip install -e"):
        find_benchmarks(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, None), ({"GOMP_SPINCOUNT": "5"}, "5")]
)
def test_threads_wait_for_each_other_but_briefly_unless_told_otherwise(given, expected):
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import os, lact_asr; print(os.environ.get('GOMP_SPINCOUNT'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **given})
    assert result.stdout.strip() == str(expected), result.stderr
