"""What a run starts from: a pretrained front end, frozen or not, or all weights of another checkpoint."""

import shutil

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

CHECKPOINT_CONV_DIM = (12, 16, 12, 16, 12, 16, 20)  # another shape than the configuration file's


@pytest.fixture(scope="module")
def wav2vec2_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        conv_dim=CHECKPOINT_CONV_DIM, conv_bias=True, feat_extract_norm="layer", hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wav2vec2")
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained_weights(wav2vec2_folder):
    """The saved front end's tensors by the names they have in our model."""
    weights = Wav2Vec2Model.from_pretrained(wav2vec2_folder).feature_extractor.state_dict()
    return {f"front_end.{name}": tensor for name, tensor in weights.items()}


def front_end_of(run) -> dict[str, torch.Tensor]:
    return {name: value for name, value in run.state()["model"].items() if name.startswith("front_end.")}


@pytest.mark.parametrize("flags", [("--freeze_encoder",), ("--encoder_lr_scale", 0)], ids=["frozen", "rate 0"])
def test_a_pretrained_front_end_that_may_not_learn_keeps_its_weights(train, wav2vec2_folder, pretrained_weights, flags):
    run = train("--wav2vec2_model_name", wav2vec2_folder, "--max_steps", 3, "--peak_lr", 1e-2, *flags)
    assert run.exit_code == 0
    front_end = front_end_of(run)
    assert front_end.keys() == pretrained_weights.keys()
    for name, weight in pretrained_weights.items():
        assert torch.equal(front_end[name], weight), name
    assert run.best().model.config.conv_dim == CHECKPOINT_CONV_DIM


def test_a_pretrained_front_end_learns_otherwise(train, wav2vec2_folder, pretrained_weights):
    front_end = front_end_of(train("--wav2vec2_model_name", wav2vec2_folder, "--max_steps", 2))
    for name, weight in pretrained_weights.items():
        assert not torch.equal(front_end[name], weight), name
        torch.testing.assert_close(front_end[name], weight, rtol=0, atol=0.01)


def test_frozen_front_end_stays_frozen_over_a_resumption(train, wav2vec2_folder, pretrained_weights):
    flags = ("--wav2vec2_model_name", wav2vec2_folder, "--freeze_encoder", "--peak_lr", 1e-2)
    train(*flags, "--max_steps", 1)
    run = train(*flags, "--max_steps", 2, "--resume_from_checkpoint")
    assert [event["step"] for event in run.events("train")] == [1, 2]
    assert all(torch.equal(front_end_of(run)[name], weight) for name, weight in pretrained_weights.items())
    assert run.events("train")[-1]["encoder_learning_rate"] == 0


def test_init_checkpoint_gives_all_weights_and_a_new_run(train, finished_run):
    run = train(
        "--init_checkpoint", finished_run.folder / "best_model.pt", "--max_steps", 1, "--peak_lr", 1e-12, "--enable_ttt"
    )
    assert [event["step"] for event in run.events("train")] == [1]
    expected = finished_run.best().model.state_dict()
    for name, value in run.state()["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)
    validation = run.events("validation")[0]
    assert (validation["wer"], validation["cer"]) == tuple(finished_run.best().notes[key] for key in ("wer", "cer"))


@pytest.mark.parametrize("flag", ["--init_checkpoint", "--wav2vec2_model_name"])
def test_a_resumed_run_needs_its_starting_point_no_more(train, finished_run, wav2vec2_folder, tmp_path, flag):
    """The same command line goes on after a cleaned scratch disk, or where the hub cannot be reached."""
    source = finished_run.folder / "best_model.pt" if flag == "--init_checkpoint" else wav2vec2_folder
    start = tmp_path / "start"
    shutil.copytree(source, start) if source.is_dir() else shutil.copy(source, start)
    train(flag, start, "--max_steps", 1)
    shutil.rmtree(start) if start.is_dir() else start.unlink()
    run = train(flag, start, "--max_steps", 2, "--resume_from_checkpoint", "auto")
    assert run.state()["progress"]["step"] == 2


def test_init_checkpoint_without_the_ttt_head_serves_a_run_with_it(train):
    source = train("--max_steps", 1, name="source")
    run = train("--init_checkpoint", source.folder / "best_model.pt", "--max_steps", 1, "--enable_ttt", name="with_ttt")
    assert run.exit_code == 0
    assert run.best().model.masked_prediction is not None


def test_vocabulary_of_a_checkpoint(train, finished_run):
    run = train("--vocabulary", finished_run.folder / "best_model.pt", "--max_steps", 1)
    assert run.best().processor.vocabulary == finished_run.best().processor.vocabulary
