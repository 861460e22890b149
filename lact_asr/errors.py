"""The one exception for problems that the user can mend, and the place where commands turn it into exit code 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one clear sentence that says what and, if known, the mend."""


def exit_on_input_error(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a command's ``main``: an `InputError` becomes one line on stderr and exit code 2, without a traceback."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_BAD_INPUT

    return wrapped
