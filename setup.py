"""Packaging of lact-asr: one import namespace, `lact_asr`, whose user-facing folders are links to the top-level ones."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
LINKED_FOLDERS = ("kernels", "training", "inference")
PACKAGES = [
    "lact_asr",
    "lact_asr.data",
    "lact_asr.front_end",
    "lact_asr.kernels",
    "lact_asr.kernels.fast_weight_apply",
    "lact_asr.kernels.fast_weight_gradients",
    "lact_asr.kernels.muon_step",
    "lact_asr.kernels.newton_schulz",
    "lact_asr.inference",
    "lact_asr.inference.alignment",
    "lact_asr.inference.decoding",
    "lact_asr.inference.exporting",
    "lact_asr.inference.language_models",
    "lact_asr.inference.long_audio",
    "lact_asr.inference.results",
    "lact_asr.inference.robustness",
    "lact_asr.inference.streams",
    "lact_asr.inference.transcript_formats",
    "lact_asr.inference.ttt",
    "lact_asr.inference.web_page",
    "lact_asr.training",
]

for name in LINKED_FOLDERS:
    if not (ROOT / "lact_asr" / name).is_dir():
        raise SystemExit(
            f"lact_asr/{name} is not a folder: it is a symbolic link to ../{name} that this checkout has lost. "
            "On Windows, enable symbolic links (git config core.symlinks true) and check out again."
        )

RUNTIME = [
    "torch>=2.6",
    "numpy>=1.26",
    "transformers>=5.0",
    "accelerate>=1.0",
    "einops>=0.8",
    "jiwer>=4.0",
    "rapidfuzz>=3.0",
    "lhotse>=1.30",
    "soundfile>=0.12",
    "soxr>=0.5",
    "tensorboard>=2.15",
    "tqdm>=4.60",
    "urllib3>=2",  # lhotse imports it without declaring it
    "safetensors>=0.4",
    "cmaes>=0.11",  # the TTT optimizer cma_es
]
BEAM_SEARCH = ["pyctcdecode>=0.5", "kenlm>=0.3.0", "kaldingram>=0.1.2", "numpy<2"]
DECODERS = ["flashlight-text>=0.0.7", "ctc-beam-decoder>=0.2"]  # compiled, not for every system
# PyTorch's CUDA wheels bring the Triton that they were built with; beside a CPU wheel it serves the kernels' tests.
TRITON = ["triton>=3.4; platform_system == 'Linux'"]
ROBUSTNESS = [
    "audiomentations>=0.43",
    "pyroomacoustics>=0.10",
    "soundfile>=0.13",  # sets bit rates
    "matplotlib>=3.8",
    "jinja2>=3.1",
    "psutil>=5.9",
]
VOICE_ACTIVITY = ["silero-vad>=5.1"]
MICROPHONE = ["sounddevice>=0.4"]
WEB = ["gradio>=6", "jinja2>=3.1"]
DEMO = [*BEAM_SEARCH, "espeakng-loader>=0.2.4", "matplotlib>=3.8"]
ABLATIONS = [*ROBUSTNESS, "espeakng-loader>=0.2.4", "pyyaml>=6", "filelock>=3.12"]
WANDB = ["wandb>=0.16"]
DEV = [*DEMO, *ABLATIONS, *TRITON, "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.6"]

setup(
    name="lact-asr",
    version="0.1.0",
    description="Speech recognition with test-time training: LaCT fast weights on a Wav2Vec2 front end",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.10,<3.13",
    packages=PACKAGES,
    package_data={
        "lact_asr.data": ["*.txt"],
        "lact_asr.inference": ["recipes/*.json"],
        "lact_asr.inference.robustness": ["*.jinja"],
        "lact_asr.inference.web_page": ["*.jinja", "*.css"],
    },
    entry_points={"console_scripts": ["lact-asr = lact_asr.command_line:main"]},
    install_requires=RUNTIME,
    extras_require={
        "beam": BEAM_SEARCH,
        "decoders": DECODERS,
        "triton": TRITON,
        "demo": DEMO,
        "robustness": ROBUSTNESS,
        "ablations": ABLATIONS,
        "web": WEB,
        "wandb": WANDB,
        "vad": VOICE_ACTIVITY,
        "microphone": MICROPHONE,
        "dev": DEV,
    },
)
