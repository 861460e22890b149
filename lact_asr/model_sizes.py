"""Prints how many parameters a configuration has, part by part, and its frame rate, without building it in memory.

python -m lact_asr.model_sizes configs/hybrid_asr_config.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from lact_asr.command_line import program_name
from lact_asr.errors import exit_on_input_error
from lact_asr.sample_rate import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from lact_asr import HybridASRConfig, HybridASRForCTC

EXAMPLE_SECONDS = 10

# A part takes the parameters that no part before it has taken.
_PARTS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("front end", lambda name: name.startswith(("front_end.", "feature_"))),
    ("fast weights", lambda name: ".layer.fast_weights." in name),
    ("QKV", lambda name: ".layer.qkv." in name),
    ("feed-forward", lambda name: ".feed_forward." in name),
    ("output, gates, rates, norms", lambda name: name.startswith(("blocks.", "final_norm."))),
    ("CTC head", lambda name: name.startswith("ctc_head.")),
    ("masked-prediction head", lambda name: name.startswith("masked_prediction.")),
    ("rates of test-time training", lambda name: name.startswith("ttt_rates.")),
)


def meta_model(config: HybridASRConfig) -> HybridASRForCTC:
    """The model with shapes but without values: it takes no memory, whatever its size."""
    import torch

    from lact_asr import HybridASRForCTC

    with torch.device("meta"):
        return HybridASRForCTC(config)


def count_parameters(model: HybridASRForCTC) -> dict[str, int]:
    """Parameters of each part of the model; the parts are disjoint and add up to all of it.

    Raises:
        ValueError: a parameter belongs to no part, so that the parts would not add up.
    """
    counts = dict.fromkeys((title for title, _ in _PARTS), 0)
    for name, parameter in model.named_parameters():
        part = next((title for title, belongs in _PARTS if belongs(name)), None)
        if part is None:
            raise ValueError(f"The parameter {name} belongs to no part of the table.")
        counts[part] += parameter.numel()
    return counts


def size_table(config: HybridASRConfig) -> str:
    """The lines that the command prints."""
    import torch

    model = meta_model(config)
    counts = count_parameters(model)
    example_frames = int(model.frame_lengths(torch.tensor(EXAMPLE_SECONDS * SAMPLE_RATE_HZ)))
    rows = [(title, _millions(count)) for title, count in counts.items() if count]
    rows += [("total", _millions(sum(counts.values()))), ("", "")]
    if config.use_fast_weights:
        rows.append(("fast weights with their QKV", _millions(counts["fast weights"] + counts["QKV"])))
    rows += [
        ("frame rate", f"{config.frame_rate_hz:.1f} Hz"),
        ("samples per frame", str(config.samples_per_frame)),
        (f"frames for {EXAMPLE_SECONDS} s", str(example_frames)),
    ]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:<{width}}  {value:>10}".rstrip() for title, value in rows)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count / 1e6:.3f} M"


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 where the configuration cannot be used."""
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.model_sizes"), description=__doc__.splitlines()[0]
    )
    parser.add_argument("config_path", help="a configuration file, for example configs/hybrid_asr_config.json")
    path = parser.parse_args(arguments).config_path
    from lact_asr import HybridASRConfig  # after parsing: --help answers at once

    print(size_table(HybridASRConfig.from_json_file(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
