"""Other projects' orthogonalisation, loaded from a folder or an installed package that the user names.

Adapters only: none of their code is here. Each gives a function of a batch [N, m, n] in bfloat16 without gradients; where a
project knows single matrices only, it is called for each in turn, as its users would.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

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


def load_peer(argument: str) -> tuple[str, Orthogonalise]:
    """``NAME=PATH`` (a checkout) or ``NAME`` (an installed package) -> its name and function.

    Raises:
        ValueError: Unknown name, no such folder, or a project that cannot be imported.
    """
    name, _, path = argument.partition("=")
    if name not in PEERS:
        raise ValueError(f"unknown peer {name!r}: known are {', '.join(PEERS)}")
    if path and not Path(path).is_dir():
        raise ValueError(f"peer {name}: no folder {path}")
    try:
        return name, PEERS[name](path or None)
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise ValueError(f"peer {name} cannot be loaded from {path or 'the installed packages'}: {error}") from error


def torch_optim_muon() -> Orthogonalise:
    """The orthogonalisation inside `torch.optim.Muon`, for one matrix at a time.

    Raises:
        ValueError: A PyTorch without it.
    """
    try:
        function = importlib.import_module("torch.optim._muon")._zeropower_via_newtonschulz
    except (ImportError, AttributeError) as error:
        raise ValueError("this PyTorch has no torch.optim.Muon") from error
    return _for_each(lambda matrix: function(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
