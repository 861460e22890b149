"""Train Transformers' Wav2Vec2ForCTC from scratch as our model is trained, and transcribe the validation set with it.

Takes the flags of training/train_hybrid_asr.py, for a corpus that is there. The peer has the configuration's front end, width, depth
and number of parameters; the batches, augmentation, front-end warm start, optimiser, schedule and language model are ours.
Choose --max_steps so that both trainings cost the same time: `python -m benchmarks.training` measures a step of each. The best model
also becomes a folder of Transformers', OUTPUT_DIR/transformers, which every command takes as its --checkpoint.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator
from transformers import Wav2Vec2Processor

from benchmarks.training_systems import number_of_parameters
from benchmarks.wav2vec2_peer import Wav2Vec2Peer
from lact_asr.atomic_files import write_json
from lact_asr.checkpoint import BEST_MODEL, load_checkpoint, load_torch_file
from lact_asr.data.corpora import load_corpus
from lact_asr.errors import exit_on_input_error
from lact_asr.inference.companions import LANGUAGE_MODEL_NAME
from lact_asr.inference.decoding import make_decoder
from lact_asr.inference.evaluation import evaluate
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.language_models.ngram_training import build_ngram
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.results.results_file import ResultsWriter
from lact_asr.inference.results.summary import format_table, summarise
from lact_asr.inference.utterances import corpus_utterances
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.training.arguments import parse_arguments
from lact_asr.training.checkpoint_rotation import checkpoints_to_resume_from
from lact_asr.training.data_setup import (
    choose_processor,
    join_training_corpora,
    load_training_corpora,
    make_evaluation_loader,
    make_training_loader,
)
from lact_asr.training.front_end_warm_start import warm_start_front_end
from lact_asr.training.model_setup import make_config
from lact_asr.training.run_log import RunLog, describe_run, prepare_output_dir
from lact_asr.training.run_setup import make_accelerator
from lact_asr.training.trainer import Trainer


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Train until the last step or a stop request, then transcribe greedily and with the run's language model."""
    arguments = parse_arguments(argv)
    prepare_output_dir(arguments.output_dir)
    trainer = make_peer_trainer(arguments, make_accelerator(arguments))
    exit_code = trainer.train()
    trainer.log.close()
    if exit_code == 0:
        _transcribe(arguments, trainer.plain_losses.model)
    return exit_code


def make_peer_trainer(arguments: argparse.Namespace, accelerator: Accelerator) -> Trainer:
    """What `lact_asr.training.run_setup.make_trainer` does for our model."""
    config = make_config(arguments)
    corpora = load_training_corpora(arguments)
    processor = choose_processor(arguments, corpora, config.do_normalize)
    config.ctc_vocab_size, config.ctc_blank_id = len(processor.vocabulary), processor.tokenizer.pad_token_id
    model = Wav2Vec2Peer(config)
    corpus = join_training_corpora(corpora, arguments, processor, model.frame_lengths)
    batches = make_training_loader(corpus, arguments, processor, accelerator)
    _, validation_batches = make_evaluation_loader(arguments.data_dir, arguments.val_subset, arguments, processor)
    resume_from = checkpoints_to_resume_from(arguments.resume_from_checkpoint, arguments.output_dir)
    if not resume_from and arguments.front_end_warm_start_steps:
        warm_start_front_end(model.front_end, batches, arguments.front_end_warm_start_steps, accelerator.device)
    trainer = Trainer(arguments, accelerator, model, processor, batches, validation_batches)
    if resume_from:
        trainer.resume(resume_from)
    write_json(arguments.output_dir / "run.json", describe_run(vars(arguments), {"total": number_of_parameters(model)}))
    build_ngram(corpus.texts, arguments.output_dir / LANGUAGE_MODEL_NAME, arguments.lm_order)
    trainer.log = RunLog(arguments.output_dir, resumed=trainer.progress if resume_from else None)
    return trainer


def _transcribe(arguments: argparse.Namespace, model: Wav2Vec2Peer) -> None:
    """The best model as a folder of Transformers', and with it the validation set: written as `hybrid_asr_inference.py` does and printed as a table."""
    folder = _save_for_transformers(arguments.output_dir, model)
    checkpoint = load_checkpoint(folder)
    language_model = load_language_model(arguments.output_dir / LANGUAGE_MODEL_NAME)
    corpus = load_corpus(arguments.data_dir, arguments.val_subset, arguments.dataset_type)
    make = functools.partial(make_decoder, checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id)
    decoders = {"greedy": make(), "beam + LM": make(beam_size=50, language_model=language_model)}
    summaries = {}
    for name, decoder in decoders.items():
        recogniser = Recogniser(checkpoint, decoder)
        path = arguments.output_dir / f"results_{arguments.val_subset}_{name.split()[0]}.jsonl"
        with ResultsWriter(path) as writer:
            summaries[name] = summarise(evaluate(corpus_utterances(corpus), recogniser, writer))
    print(format_table(summaries))


def _save_for_transformers(run: Path, model: Wav2Vec2Peer) -> Path:
    """What `Wav2Vec2ForCTC.from_pretrained`, and every ``--checkpoint``, reads; the run's language model lies in it, too."""
    content = load_torch_file(run / BEST_MODEL)
    model.load_state_dict(content["model"])
    folder = run / "transformers"
    model.wav2vec2.save_pretrained(folder)
    processor = HybridASRProcessor.from_vocabulary(content["vocabulary"], model.config.do_normalize)
    Wav2Vec2Processor(processor.feature_extractor, processor.tokenizer).save_pretrained(folder)
    shutil.copyfile(run / LANGUAGE_MODEL_NAME, folder / LANGUAGE_MODEL_NAME)
    return folder


if __name__ == "__main__":
    sys.exit(main())
