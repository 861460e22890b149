"""The whole way in one command: make a corpus, train on it, add noise to its test set, adapt and transcribe, compare.

Every step is one of the commands that users run themselves; each is printed before it starts. Finished steps are kept,
so that an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.results.results_file import read_results
from lact_asr.inference.results.summary import Summary, summarise

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "tiny.json"
SNR_DB = (20, 10)
SYSTEMS = {  # name -> (flags, whether the results file's text before TTT is meant)
    "greedy": (["--greedy"], False),
    "beam + LM": (["--use_ttt", "--ttt_loss_type", "entropy"], True),
    "beam + LM + TTT": (["--use_ttt", "--ttt_loss_type", "entropy"], False),
}
TRAINING_FLAGS = {
    "--train_subset": "train-generated",
    "--val_subset": "dev-generated",
    "--test_subset": "test-generated",
    "--batch_size": 4,
    "--optimizer": "muon",
    "--peak_lr": 2e-3,
    "--warmup_steps": 150,
    "--front_end_warm_start_steps": 700,
    "--eval_steps": 350,
    "--save_steps": 350,
    "--logging_steps": 50,
}


@exit_on_input_error
def main() -> int:
    """Run every step that is not done yet, then print the table and draw the plot."""
    arguments = _parse()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    output_dir = arguments.output_dir.resolve()
    corpus, model, noisy = output_dir / "corpus", output_dir / "model", output_dir / "noisy"
    started = time.monotonic()
    _run(
        "-m", "lact_asr.data.generated_speech", "--output_dir", corpus, "--hours", arguments.hours, "--seed", arguments.seed,
    )  # fmt: skip
    _train(arguments, corpus, model)
    _add_noise(arguments, corpus, noisy)
    conditions = {"clean": (corpus, "test-generated")}
    conditions |= {f"{snr} dB SNR": (noisy, f"test-generated-snr{snr}") for snr in SNR_DB}
    results = {name: _recognise(model, *place, output_dir / "results") for name, place in conditions.items()}
    _report(results, arguments, output_dir)
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Everything is in {output_dir}.")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"), help="default: %(default)s")
    parser.add_argument("--hours", type=float, default=1.4, help="of generated speech (default: %(default)s)")
    parser.add_argument(
        "--max_steps", type=int, default=1400, help="of training (default: %(default)s, seven minutes on two cores)"
    )
    parser.add_argument(
        "--noise_dir", type=Path, default=None, help="folder of real noise recordings (default: pink noise is made)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser.parse_args()


def _run(*arguments: object) -> None:
    """Print and run one Python command.

    Raises:
        InputError: it failed; what it printed says why.
    """
    command = [sys.executable, *map(str, arguments)]
    print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise InputError("the command above failed; the demo stops here and goes on from here when it is run again.")


def _train(arguments: argparse.Namespace, corpus: Path, model: Path) -> None:
    """Train, or go on with an interrupted training; then choose the language model's weight on the dev set."""
    if not (model / "test_results.json").exists():
        _run(
            "training/train_hybrid_asr.py", "--config_path", CONFIG, "--data_dir", corpus, "--output_dir", model,
            "--max_steps", arguments.max_steps, "--seed", arguments.seed, *itertools.chain(*TRAINING_FLAGS.items()),
            "--resume_from_checkpoint", "auto",
        )  # fmt: skip
    if not (model / "lm_weights.json").exists():
        _run(
            "-m", "lact_asr.inference.tune_language_model", "--checkpoint", model / "best_model.pt", "--data_dir", corpus,
            "--subset", "dev-generated", "--max_samples", 60,
        )  # fmt: skip


def _add_noise(arguments: argparse.Namespace, corpus: Path, noisy: Path) -> None:
    if noisy.exists():
        return
    source = ["--colour", "pink"] if arguments.noise_dir is None else ["--noise_dir", arguments.noise_dir]
    _run(
        "-m", "lact_asr.data.noise", "--data_dir", corpus, "--subset", "test-generated", "--output_dir", noisy,
        "--snr_db", *SNR_DB, *source,
    )  # fmt: skip


def _recognise(model: Path, data_dir: Path, subset: str, results_dir: Path) -> dict[str, Summary]:
    """Score one test set with every system; a run with TTT holds the transcripts without it too."""
    summaries = {}
    for name, (flags, _) in SYSTEMS.items():
        path = results_dir / f"{subset}{'_greedy' if '--greedy' in flags else '_beam_ttt'}.jsonl"
        if path not in {summary_path for summary_path, _ in summaries.values()}:
            _run(
                "inference/hybrid_asr_inference.py", "--checkpoint", model / "best_model.pt", "--data_dir", data_dir,
                "--subset", subset, "--output", path, "--resume", *flags,
            )  # fmt: skip
        summaries[name] = (path, summarise(read_results(path)))
    return {name: summary for name, (_, summary) in summaries.items()}


def _report(results: dict[str, dict[str, Summary]], arguments: argparse.Namespace, output_dir: Path) -> None:
    """Print the table and write it as Markdown, JSON and a plot."""
    rates = {
        condition: {
            system: (summary.words_without_ttt if SYSTEMS[system][1] else summary.words).rate
            for system, summary in systems.items()
        }
        for condition, systems in results.items()
    }
    lines = [
        "| word error rate | " + " | ".join(SYSTEMS) + " |",
        "|---|" + "---|" * len(SYSTEMS),
        *(
            f"| {condition} | " + " | ".join(f"{row[s]:.1%}" for s in SYSTEMS) + " |"
            for condition, row in rates.items()
        ),
    ]
    words = next(iter(results["clean"].values())).words.reference_length
    noise = "pink noise" if arguments.noise_dir is None else f"noise from {arguments.noise_dir}"
    table = "\n".join([*lines, "", f"{words} words; {noise}; seed {arguments.seed}; {arguments.max_steps} steps."])
    print(f"\n{table}")
    (output_dir / "results.md").write_text(table + "\n", encoding="utf-8")
    (output_dir / "results.json").write_text(json.dumps(rates, indent=2) + "\n", encoding="utf-8")
    _plot(rates, output_dir)


def _plot(rates: dict[str, dict[str, float]], output_dir: Path) -> None:
    """Two pictures side by side: how training went, and the table as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    events = [json.loads(line) for line in (output_dir / "model" / "training_log.jsonl").read_text().splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    training = [event for event in events if event["event"] == "train"]
    validation = [event for event in events if event["event"] == "validation"]
    left.plot([e["step"] for e in training], [e["ctc_loss"] for e in training], color="tab:gray", label="CTC loss")
    left.set(xlabel="step", ylabel="CTC loss", title="Training", ylim=(0, None))
    wer_axis = left.twinx()
    wer_axis.plot([e["step"] for e in validation], [100 * e["wer"] for e in validation], "o-", label="dev WER, greedy")
    wer_axis.set(ylabel="WER %", ylim=(0, 105))
    figure.legend(*[a + b for a, b in zip(left.get_legend_handles_labels(), wer_axis.get_legend_handles_labels(), strict=True)],
                  loc="outside lower left", ncols=2, frameon=False)  # fmt: skip
    width = 0.8 / len(SYSTEMS)
    for index, system in enumerate(SYSTEMS):
        positions = [place + (index - (len(SYSTEMS) - 1) / 2) * width for place in range(len(rates))]
        bars = right.bar(positions, [100 * row[system] for row in rates.values()], width, label=system)
        right.bar_label(bars, fmt="%.0f", fontsize=8)
    right.set(xticks=range(len(rates)), xticklabels=list(rates), ylabel="WER %", title="Generated test set")
    right.legend(frameon=False)
    figure.savefig(output_dir / "results.png", dpi=120)
    print(f"Plot: {output_dir / 'results.png'}")


if __name__ == "__main__":
    sys.exit(main())
