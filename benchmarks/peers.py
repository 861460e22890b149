"""Other projects' orthogonalisation, loaded from a folder or an installed package that the user names.

Adapters only: none of their code is here. Each gives a function of a batch [N, m, n] in bfloat16 without gradients; where a
project knows single matrices only, it is called for each in turn, as its users would.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.timing import first_line

Orthogonalise = Callable[[Tensor], Tensor]


def _for_each(function: Orthogonalise) -> Orthogonalise:
    return lambda matrices: torch.stack([function(matrix) for matrix in matrices])


def _module(name: str, path: str | None) -> ModuleType:
    """A module of a checkout, loaded as a file of its own so that the package around it may need more than is installed."""
    if path is None:
        return importlib.import_module(name)
    file = Path(path, *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"peer_{name.replace('.', '_')}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where `torch.compile` and Triton look for what the module defines
    spec.loader.exec_module(module)
    return module


def _package(name: str, path: str | None) -> ModuleType:
    """A package that imports its own parts, from a checkout or as installed."""
    if path is not None:
        sys.path.insert(0, str(Path(path).resolve()))
    try:
        return importlib.import_module(name)
    finally:
        if path is not None:
            sys.path.pop(0)


def _flash_muon(path: str | None) -> Orthogonalise:
    function = _package("flash_muon.muon", path).fast_newtonschulz
    return _for_each(lambda matrix: function(matrix, steps=5))


PEERS: dict[str, Callable[[str | None], Orthogonalise]] = {
    "lact": lambda path: _module("lact_llm.lact_model.ttt_operation", path).zeropower_via_newtonschulz5,
    "flash_muon": _flash_muon,
    "dion": lambda path: _module("dion.newton_schulz_triton", path).newton_schulz_triton,
    "gram_newton_schulz": lambda path: _package("gram_newton_schulz", path).GramNewtonSchulz(),
}


def peer_argument(argument: str) -> tuple[str, str | None]:
    """``NAME=PATH`` (a checkout) or ``NAME`` (an installed package) -> name and path.

    Raises:
        argparse.ArgumentTypeError: Unknown name, or no such folder.
    """
    name, _, path = argument.partition("=")
    if name not in PEERS:
        raise argparse.ArgumentTypeError(f"unknown peer {name!r}: known are {', '.join(PEERS)}")
    if path and not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"peer {name}: no folder {path}")
    return name, path or None


def load_peers(named: list[tuple[str, str | None]]) -> tuple[dict[str, Orthogonalise], list[str]]:
    """Function of each project that can be loaded, PyTorch's own first, and a sentence about each that cannot."""
    loaders, loaded, failures = {"torch.optim.Muon": _torch_optim_muon, **PEERS}, {}, []
    for name, path in [("torch.optim.Muon", None), *named]:
        try:
            loaded[name] = loaders[name](path)
        except Exception as error:  # whatever another project's import runs into must not lose our figures
            source = path or "the installed packages"
            failures.append(f"peer {name} cannot be loaded from {source}: {first_line(error)}")
    return loaded, failures


def _torch_optim_muon(_: None) -> Orthogonalise:
    """The orthogonalisation inside `torch.optim.Muon` (PyTorch 2.9 and newer), for one matrix at a time."""
    function = importlib.import_module("torch.optim._muon")._zeropower_via_newtonschulz
    return _for_each(lambda matrix: function(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
