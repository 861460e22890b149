"""Whatever cannot be used ends the command with exit code 2 and one clear line, before anything is written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lact_asr.checkpoint import save_checkpoint
from lact_asr.training.arguments import parse_arguments
from lact_asr.training.checkpoint_rotation import saved_checkpoints


class Case:
    """What a case may use to build its flags."""

    def __init__(self, tmp_path: Path, corpus_dir: Path, finished: Path, best) -> None:
        self.tmp, self.corpus, self.finished, self.best = tmp_path, corpus_dir, finished, best
        self.checkpoint = saved_checkpoints(finished)[0]

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def folder(self, name: str) -> Path:
        (self.tmp / name).mkdir()
        return self.tmp / name

    def config(self, **values) -> tuple:
        return "--config_path", self.file("broken.json", json.dumps(values))

    def manifest(self, *lines: str) -> tuple:
        path = self.file("data/broken.jsonl", "".join(line + "\n" for line in lines))
        return "--dataset_type", "manifest", "--data_dir", path.parent, "--train_subset", "broken"

    def noise(self, samples: np.ndarray) -> tuple:
        folder = self.folder("noise")
        soundfile.write(folder / "quiet.wav", samples, 16_000)
        return "--noise_dir", folder

    def resume(self, content: bytes) -> tuple:
        return "--enable_ttt", "--resume_from_checkpoint", self.file("state.pt", content)

    def state_with(self, **changes) -> tuple:
        state = torch.load(self.checkpoint, weights_only=True) | changes
        torch.save(state, self.tmp / "state.pt")
        return "--enable_ttt", "--resume_from_checkpoint", self.tmp / "state.pt"

    def swapped_vocabulary(self) -> tuple:
        vocabulary = self.best.processor.vocabulary
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
        save_checkpoint(self.tmp / "swapped.pt", self.best.model, vocabulary)
        return "--init_checkpoint", self.tmp / "swapped.pt"


def _broken_corpus(case: Case) -> tuple:
    """A subset whose only recording has no transcript."""
    soundfile.write(case.folder("corpus") / "lonely.flac", np.zeros(8_000), 16_000)
    chapter = case.tmp / "corpus" / "train-lonely" / "1" / "1"
    chapter.mkdir(parents=True)
    (case.tmp / "corpus" / "lonely.flac").rename(chapter / "1-1-0000.flac")
    return "--data_dir", case.tmp / "corpus", "--train_subset", "train-lonely"


# Name -> (flags to add, what the sentence must name).
CASES: dict[str, tuple[Callable[[Case], tuple], tuple[str, ...]]] = {
    "no such configuration": (lambda c: ("--config_path", c.tmp / "none.json"), ("none.json",)),
    "configuration not JSON": (lambda c: ("--config_path", c.file("broken.json", "{1: }")), ("broken.json", "JSON")),
    "configuration a list": (lambda c: ("--config_path", c.file("broken.json", "[]")), ("broken.json",)),
    "unknown key": (lambda c: c.config(hiden_size=32), ("hiden_size", "broken.json")),
    "impossible value": (lambda c: c.config(encoder_target_ds_factor=9), ("encoder_target_ds_factor", "9")),
    "impossible value as a flag": (lambda c: ("--ttt_mask_prob", "1", "--ttt_training", "none"), ("ttt_mask_prob", "below 1")),
    "value of another type": (lambda c: c.config(hidden_size="32"), ("hidden_size",)),
    "pretrained encoder without a name": (lambda c: c.config(use_wav2vec2_encoder=True), ("wav2vec2_model_name",)),
    "frozen random encoder": (lambda c: ("--freeze_encoder",), ("freeze_encoder",)),
    "no data folder": (lambda c: ("--data_dir", c.tmp / "none"), ("none",)),
    "data folder a file": (lambda c: ("--data_dir", c.file("corpus.txt", "x")), ("corpus.txt",)),
    "unknown training subset": (lambda c: ("--train_subset", "train-generatd"), ("train-generatd", "train-generated")),
    "unknown validation subset": (lambda c: ("--val_subset", "dev-generatd"), ("dev-generatd", "dev-generated")),
    "unknown test subset": (lambda c: ("--test_subset", "test-generatd"), ("test-generatd", "test-generated")),
    "no subset": (lambda c: ("--train_subset", ","), ("subset",)),
    "subset twice": (lambda c: ("--train_subset", "train-generated,train-generated"), ("train-generated",)),
    "empty subset": (lambda c: ("--data_dir", c.folder("train-empty").parent, "--train_subset", "train-empty"), ("train-empty",)),
    "no transcripts": (_broken_corpus, ("train-lonely", "1-1.trans.txt")),
    "no such manifest": (lambda c: ("--dataset_type", "manifest"), ("train-generated.jsonl",)),
    "manifest line not JSON": (lambda c: c.manifest("", "{not json}"), ("broken.jsonl:2", "JSON")),
    "manifest line without audio": (lambda c: c.manifest('{"text": "A"}'), ("broken.jsonl:1", "audio_filepath")),
    "empty manifest": (lambda c: c.manifest(), ("broken",)),
    "everything too long": (lambda c: ("--max_audio_duration", "0.5"), ("0.5 s", "train-generated")),
    "extra data without folder": (lambda c: ("--extra_train_data", "manifest:train"), ("manifest:train", "TYPE:FOLDER:SUBSETS")),
    "extra data of no weight": (lambda c: ("--extra_train_data", f"0*librispeech:{c.corpus}:train-generated"), ("0*librispeech", "weight above 0")),
    "extra data of unknown type": (lambda c: ("--extra_train_data", f"kaldi:{c.corpus}:train-generated"), ("kaldi",)),
    "extra data not there": (lambda c: ("--extra_train_data", f"librispeech:{c.tmp / 'none'}:a"), ("none",)),
    "download of another corpus": (lambda c: ("--download", "mini_librispeech"), ("mini_librispeech", "train-generated", "train-clean-5")),
    "download of manifests": (lambda c: ("--download", "librispeech", "--dataset_type", "manifest"), ("--download", "manifest")),
    "no noise folder": (lambda c: ("--noise_dir", c.tmp / "none"), ("none",)),
    "noise folder empty": (lambda c: ("--noise_dir", c.folder("noise")), ("noise",)),
    "silent noise": (lambda c: c.noise(np.zeros(8_000)), ("quiet.wav",)),
    "impossible speed": (lambda c: ("--speed_factors", "1,3"), ("3.0",)),
    "no folder of rooms": (lambda c: ("--rir_dir", c.tmp / "none"), ("none",)),
    "resume: no file": (lambda c: ("--resume_from_checkpoint", c.tmp / "none.pt"), ("none.pt",)),
    "resume: nothing to go on from": (lambda c: ("--resume_from_checkpoint",), ("no training state", "run")),
    "resume: a folder without checkpoints": (lambda c: ("--resume_from_checkpoint", c.corpus), ("no training state", "corpus")),
    "resume: truncated": (lambda c: c.resume(c.checkpoint.read_bytes()[:20_000]), ("state.pt",)),
    "resume: empty": (lambda c: c.resume(b""), ("state.pt",)),
    "resume: text": (lambda c: c.resume(b"not a checkpoint"), ("state.pt",)),
    "resume: pickle": (lambda c: c.resume(pickle.dumps(Path("x"))), ("state.pt",)),
    "resume: a model instead": (lambda c: ("--enable_ttt", "--resume_from_checkpoint", c.finished / "best_model.pt"), ("best_model.pt", "training state")),
    "resume: other vocabulary": (lambda c: c.state_with(vocabulary={"<pad>": 0, "A": 1}), ("state.pt", "vocabulary")),
    "resume: without the TTT head": (lambda c: c.state_with()[1:], ("state.pt", "configuration")),
    "initial checkpoint not there": (lambda c: ("--init_checkpoint", c.tmp / "none.pt"), ("none.pt",)),
    "initial checkpoint of another vocabulary": (Case.swapped_vocabulary, ("swapped.pt", "vocabulary")),
    "initial checkpoint of another size": (lambda c: (*c.config(hidden_size=64), "--init_checkpoint", c.finished / "best_model.pt"), ("best_model.pt", "shapes")),
    "initial checkpoint a pickle": (lambda c: ("--init_checkpoint", c.file("evil.pt", pickle.dumps(Path("x")))), ("evil.pt",)),
    "pretrained folder empty": (lambda c: ("--wav2vec2_model_name", c.folder("w2v")), ("w2v", "config.json")),
    "pretrained folder of something else": (lambda c: ("--wav2vec2_model_name", c.file("w2v/config.json", '{"model_type": "bert"}').parent), ("w2v",)),
    "pretrained folder not JSON": (lambda c: ("--wav2vec2_model_name", c.file("w2v/config.json", "{").parent), ("w2v",)),
    "pretrained folder without weights": (lambda c: ("--wav2vec2_model_name", c.file("w2v/config.json", '{"model_type": "wav2vec2"}').parent), ("w2v",)),
    "a loss that needs a trained model": (lambda c: ("--ttt_training", "joint", "--ttt_loss_type", "alignment"), ("alignment", "cannot be trained with")),
    "vocabulary of nothing": (lambda c: ("--vocabulary", c.folder("tokenizer")), ("tokenizer",)),
}  # fmt: skip


@pytest.fixture
def case(tmp_path, corpus_dir, finished_run) -> Case:
    return Case(tmp_path, corpus_dir, finished_run.folder, finished_run.best())


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(name, case, train):
    make_flags, named = CASES[name]
    run = train("--max_steps", 1, *make_flags(case))
    assert run.exit_code == 2
    assert run.err.startswith("error: "), run.err
    assert run.err.count("\n") == 1, run.err
    for word in named:
        assert word in run.err
    assert not run.folder.exists() or not list(run.folder.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(train):
    run = train("--max_steps", 1, "--device", "cuda")
    assert (run.exit_code, run.err.count("\n")) == (2, 1)
    assert run.err.startswith("error: --device cuda")


@pytest.mark.parametrize("name", ["run", "run/below"])
def test_an_output_folder_that_cannot_be_made(case, train, name):
    blocker = case.file("run", "here already")
    run = train("--max_steps", 1, name=name)
    assert run.exit_code == 2
    assert run.err.startswith(f"error: The output folder {run.folder} is not writable")
    assert run.err.count("\n") == 1
    assert blocker.read_text() == "here already"


@pytest.mark.parametrize(
    "flags",
    [
        ("--batch_size", "0"),
        ("--batch_size", "two"),
        ("--max_steps", "-1"),
        ("--peak_lr", "0"),
        ("--peak_lr", "nan"),
        ("--peak_lr", "inf"),
        ("--encoder_lr_scale", "-0.1"),
        ("--warmup_steps", "-1"),
        ("--max_grad_norm", "0"),
        ("--weight_decay", "-1"),
        ("--max_audio_duration", "0"),
        ("--crop_samples", "399"),
        ("--crop_samples", "-1"),
        ("--lm_order", "1"),
        ("--lm_order", "6"),
        ("--seed", "-1"),
        ("--num_workers", "-1"),
        ("--keep_checkpoints", "0"),
        ("--max_skipped_steps", "0"),
        ("--speed_factors", "1,fast"),
        ("--noise_snr_db", "5,inf"),
        ("--noise_snr_db", "5"),
        ("--noise_snr_db", "-5"),
        ("--noise_snr_db", "5,10,20"),
        ("--noise_snr_db", "20,5"),
        ("--noise_prob", "1.5"),
        ("--noise_prob", "nan"),
        ("--rir_prob", "-0.1"),
        ("--dataset_type", "kaldi"),
        ("--device", "tpu"),
        ("--no_such_flag",),
    ],
    ids=" ".join,
)
def test_impossible_flags_exit_with_2_and_name_the_flag(flags, capsys):
    needed = ["--config_path", "c.json", "--data_dir", "d", "--output_dir", "o"]
    parse_arguments(needed)
    with pytest.raises(SystemExit) as ended:
        parse_arguments([*needed, *flags])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flag", [("--noise_snr_db", "-5,20"), ("--noise_snr_db=-5,20",), ("--noise_snr_db", "-5,+20")])
def test_a_range_may_begin_with_a_minus(flag):
    arguments = parse_arguments(["--config_path", "c.json", "--data_dir", "d", *flag, "--output_dir", "o"])
    assert arguments.noise_snr_db == (-5.0, 20.0)


@pytest.mark.parametrize("missing", ["--config_path", "--data_dir", "--output_dir"])
def test_needed_flags_are_asked_for(missing, capsys):
    needed = {"--config_path": "c.json", "--data_dir": "d", "--output_dir": "o"}
    del needed[missing]
    with pytest.raises(SystemExit) as ended:
        parse_arguments([part for pair in needed.items() for part in pair])
    assert ended.value.code == 2
    assert missing in capsys.readouterr().err


def test_the_command_of_the_documentation_is_understood():
    command = (
        "--config_path configs/hybrid_asr_config.json --data_dir LIBRISPEECH --train_subset train-clean-360 --val_subset "
        "dev-clean --test_subset test-clean --output_dir ./checkpoints/hybrid --batch_size 8 --max_epochs 25 --peak_lr "
        "5e-4 --warmup_steps 10000 --encoder_lr_scale 0.1 --gradient_accumulation_steps 2 --mixed_precision --enable_ttt"
    )
    arguments = parse_arguments(command.split())
    assert (arguments.batch_size, arguments.max_epochs, arguments.peak_lr) == (8, 25, 5e-4)
    assert (arguments.warmup_steps, arguments.encoder_lr_scale) == (10_000, 0.1)
    assert arguments.mixed_precision
    assert arguments.enable_ttt
    assert arguments.freeze_encoder is None  # the configuration's word counts
    assert arguments.crop_samples == 250_000
