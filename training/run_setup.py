"""Puts a run together: accelerator, data, model, language model, log; and scores the test subset at its end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.utils import set_seed
from torch.distributed.fsdp import MixedPrecisionPolicy

from lact_asr.atomic_files import write_json
from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import BEST_MODEL, load_checkpoint
from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.data.batching import SpeechDataLoader
from lact_asr.data.corpora import Corpus, load_corpus
from lact_asr.devices import choose_device
from lact_asr.errors import InputError
from lact_asr.inference.companions import LANGUAGE_MODEL_NAME
from lact_asr.inference.language_models.ngram_training import build_ngram
from lact_asr.model_sizes import count_parameters
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.training.block_options import checkpoint_activations, compile_in_place
from lact_asr.training.checkpoint_rotation import delete_unfinished_files
from lact_asr.training.data_setup import (
    choose_processor,
    download_missing,
    join_training_corpora,
    load_training_corpora,
    make_evaluation_loader,
    make_training_loader,
)
from lact_asr.training.front_end_warm_start import warm_start_front_end
from lact_asr.training.left_out import write_left_out
from lact_asr.training.model_setup import make_config, make_model
from lact_asr.training.processes import PATIENCE, require_equal, start_from_the_main_process
from lact_asr.training.run_log import RunLog, describe_run, earlier_starts
from lact_asr.training.trackers import check_trackers, start_trackers
from lact_asr.training.trainer import Trainer
from lact_asr.training.ttt_rates import calibrate_rates
from lact_asr.training.validation import validate

NOTABLE_SHARE = 0.01  # of the utterances that are cropped


def make_accelerator(arguments: argparse.Namespace) -> Accelerator:
    """Device, precision and processes.

    Raises:
        InputError: a GPU or a precision was asked for that is not there.
    """
    device = choose_device(arguments.device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=choose_precision(arguments.mixed_precision, device),
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        kwargs_handlers=[
            # LayerDrop leaves parameters without gradients, differently on each process.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    choose_precision(accelerator.mixed_precision, device)  # accelerate's own configuration may have named it
    if arguments.mixed_precision == "auto" and device.type == "cpu":
        accelerator.print("--mixed_precision has no effect on the CPU: training in float32 (bf16 asks for bfloat16).")
    if accelerator.is_fsdp2:
        # Weights are gathered in float32 and autocast chooses precisions, as without sharding.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    set_seed(arguments.seed, device_specific=True)
    return accelerator


def choose_precision(wanted: str | None, device: torch.device) -> str | None:
    """What accelerate is told: "bf16", "fp16", "no", or None for what its own configuration says.

    Args:
        wanted: the flag's value; "auto" is the best 16-bit format of a GPU, and float32 on a CPU.
        device: where training runs.

    Raises:
        InputError: the device has no such format.
    """
    if wanted == "auto":
        return "no" if device.type == "cpu" else "bf16" if _has_bfloat16() else "fp16"
    if wanted == "fp16" and device.type == "cpu":
        raise InputError("--mixed_precision fp16 needs a GPU; a CPU has bf16.")
    if wanted == "bf16" and device.type == "cuda" and not _has_bfloat16():
        raise InputError("--mixed_precision bf16 was asked for but this GPU has no bfloat16; fp16 it has.")
    return wanted


def _has_bfloat16() -> bool:
    # GPUs before Ampere emulate it, which PyTorch counts as support unless told otherwise.
    return torch.cuda.is_bf16_supported(including_emulation=False)


def make_trainer(arguments: argparse.Namespace, accelerator: Accelerator, resume_from: Sequence[Path] = ()) -> Trainer:
    """Read the data, build the model, go on from the first readable training state if any are given; then describe the run.

    Nothing is written before all of the input has been found usable.
    """
    check_trackers(arguments.trackers)
    config = make_config(arguments, resume_from)
    _check_combinations(arguments, accelerator, config)
    download_missing(arguments, accelerator)
    corpora = load_training_corpora(arguments)
    processor = choose_processor(arguments, corpora, config.do_normalize)
    model = make_model(config, processor, arguments, resumed=bool(resume_from))
    training_corpus = join_training_corpora(corpora, arguments, processor, model.frame_lengths)
    validation_corpus, validation_batches = make_evaluation_loader(
        arguments.data_dir, arguments.val_subset, arguments, processor
    )
    training_batches = make_training_loader(
        training_corpus, arguments, processor, accelerator, config.trains_with_clean_views
    )
    require_equal(training_batches.plan.digest, "training data")
    reported = [training_corpus, validation_corpus]
    if arguments.test_subset is not None:  # read when training is over, but mistakes are better found now
        reported.append(load_corpus(arguments.data_dir, arguments.test_subset, arguments.dataset_type))
    for corpus in reported:
        accelerator.print(corpus.report())
    _report_batches(arguments, accelerator, training_corpus, training_batches)
    if not resume_from:
        _warm_start(arguments, accelerator, model, training_batches)
    start_from_the_main_process(model, accelerator)
    if model.ttt_rates is not None and config.ttt_optimizer == "sgd" and not resume_from:
        calibrate_rates(model, training_batches, accelerator)
    _prepare_layers(arguments, accelerator, model)
    trainer = Trainer(arguments, accelerator, model, processor, training_batches, validation_batches)
    if resume_from:
        path = trainer.resume(resume_from)
        accelerator.print(f"Going on from {path}, step {trainer.progress.step} of {trainer.total_steps}.")
    if accelerator.is_main_process:
        delete_unfinished_files(arguments.output_dir)
        description = _describe(arguments, accelerator, model, processor.vocabulary, resumed=bool(resume_from))
        write_left_out(arguments.output_dir, reported)
        _build_language_model(arguments, training_corpus, reuse=bool(resume_from))
        trackers = start_trackers(arguments.trackers, arguments.output_dir, description, trainer.progress.step + 1)
        trainer.log = RunLog(arguments.output_dir, trackers, trainer.progress if resume_from else None)
    if arguments.warmup_steps >= trainer.total_steps:
        accelerator.print(
            f"Note: --warmup_steps {arguments.warmup_steps} is not below the run's {trainer.total_steps} steps; "
            "the learning rate will not reach its peak."
        )
    return trainer


def _check_combinations(arguments: argparse.Namespace, accelerator: Accelerator, config: HybridASRConfig) -> None:
    """Refuse, before anything is read, what cannot work together."""
    chosen = {
        "--gradient_checkpointing": arguments.gradient_checkpointing,
        "--compile": arguments.compile,
        "FSDP": accelerator.distributed_type == DistributedType.FSDP,
    }
    used = [name for name, is_chosen in chosen.items() if is_chosen]
    if config.ttt_training == "meta" and used:
        raise InputError(
            f"{used[0]} cannot be combined with --ttt_training meta, which differentiates through a step on copies of "
            "the weights."
        )
    if chosen["FSDP"] and not accelerator.is_fsdp2:
        raise InputError("Of FSDP only version 2 is supported: set fsdp_version: 2 in accelerate's configuration.")
    if chosen["FSDP"] and arguments.optimizer == "muon":
        raise InputError("--optimizer muon needs whole matrices and cannot be combined with FSDP; use adamw, or DDP.")


def _prepare_layers(arguments: argparse.Namespace, accelerator: Accelerator, model: HybridASRForCTC) -> None:
    """Checkpointing, compilation, and no LayerDrop where it cannot be: the last things before the trainer wraps the model."""
    if arguments.gradient_checkpointing:
        checkpoint_activations(model)
    if arguments.compile:
        compile_in_place([model.front_end, *model.blocks])
    if accelerator.is_fsdp2 and model.config.layerdrop > 0:
        accelerator.print("LayerDrop is off: with FSDP every process must take part in every block.")
        model.config.layerdrop = 0.0


def _report_batches(arguments: argparse.Namespace, accelerator: Accelerator, corpus: Corpus, batches) -> None:
    seconds = arguments.crop_samples / SAMPLE_RATE_HZ
    cropped = sum(cut.duration > seconds for cut in corpus.cuts) if arguments.crop_samples > 0 else 0
    accelerator.print(
        f"{len(batches):,} batches an epoch on each of {accelerator.num_processes} processes, "
        f"{batches.padding_fraction():.1%} of samples are padding; {cropped:,} utterances cropped to {seconds:.1f} s"
    )
    if cropped > NOTABLE_SHARE * len(corpus.cuts):
        accelerator.print(
            f"Note: {cropped / len(corpus.cuts):.0%} of the utterances lose their ends while their transcripts stay whole, so that their "
            "last words are wrong labels; --crop_samples 0 keeps them, --max_audio_duration leaves long ones out."
        )


def _describe(
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    model: HybridASRForCTC,
    vocabulary: dict[str, int],
    resumed: bool,
) -> dict:
    """Write down what is run; returns the content of ``run.json``."""
    counts = count_parameters(model)
    counts["total"] = sum(counts.values())
    print(f"Model: {counts['total'] / 1e6:.2f} M parameters, {model.config.frame_rate_hz:g} frames a second.")
    description = {
        **describe_run(vars(arguments), counts),
        "processes": accelerator.num_processes,
        "distribution": accelerator.distributed_type.value,
        "precision": accelerator.mixed_precision,
    }
    path = arguments.output_dir / "run.json"
    if resumed:
        description["earlier_starts"] = earlier_starts(path, description)
    write_json(path, description)
    write_json(arguments.output_dir / "vocab.json", vocabulary)
    model.config.to_json_file(arguments.output_dir / "config.json", use_diff=False)
    return description


def _warm_start(
    arguments: argparse.Namespace, accelerator: Accelerator, model: HybridASRForCTC, batches: SpeechDataLoader
) -> None:
    """The front end's first lesson; on several processes accelerate gives all of them the main one's weights later."""
    fresh = not model.config.use_wav2vec2_encoder and arguments.init_checkpoint is None
    if arguments.front_end_warm_start_steps > 0 and fresh:
        model.to(accelerator.device)
        warm_start_front_end(
            model.front_end, batches, arguments.front_end_warm_start_steps, accelerator.device,
            accelerator.is_main_process,
        )  # fmt: skip


def _build_language_model(arguments: argparse.Namespace, corpus: Corpus, reuse: bool) -> None:
    path = arguments.output_dir / LANGUAGE_MODEL_NAME
    if arguments.lm_order > 0 and not (path.exists() and reuse):
        build_ngram(corpus.texts, path, arguments.lm_order)


def score_test_subset(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Greedy rates of the best model on ``--test_subset``, printed and written to ``test_results.json``."""
    if arguments.test_subset is None:
        return
    checkpoint = load_checkpoint(arguments.output_dir / BEST_MODEL)
    corpus, batches = make_evaluation_loader(arguments.data_dir, arguments.test_subset, arguments, checkpoint.processor)
    vocabulary = checkpoint.processor.vocabulary
    with accelerator.autocast():  # as the validation that chose this model
        result = validate(checkpoint.model.to(accelerator.device), batches, vocabulary, accelerator.device)
    print(f"{corpus.name}: greedy WER {result.wer:.2%}, CER {result.cer:.2%}")
    rates = {"subset": arguments.test_subset, "wer": result.wer, "cer": result.cer, "utterances": len(corpus.cuts)}
    write_json(arguments.output_dir / "test_results.json", rates)
