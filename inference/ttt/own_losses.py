"""Losses of one's own: a function of a module that is not a part of this package, named on the command line."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable

from torch import Tensor

from lact_asr.errors import InputError


def find_function(name: str) -> Callable[..., Tensor]:
    """The function ``MODULE:FUNCTION``; modules of the current folder are found, too.

    Returns:
        It, with its attributes and its result checked to be a scalar tensor.

    Raises:
        InputError: there is no such module or function, or the module cannot be imported.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # commands that are called by a path or a name do not have it
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever happens in code that is not ours
        raise InputError(
            f"The module of the TTT loss {name} cannot be imported ({type(error).__name__}: {error})."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"The module {module_name} of the TTT loss {name} has no function {function_name!r}.")

    @functools.wraps(function)
    def checked(*args, **kwargs) -> Tensor:
        loss = function(*args, **kwargs)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"The TTT loss {name} must return a scalar tensor, not {found}.")
        return loss

    return checked
