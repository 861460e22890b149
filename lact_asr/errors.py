"""The one exception for problems that the user can mend, the place where commands turn it into exit code 2, and warnings."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Sequence

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
_LONGEST_SENTENCE = 800


def one_line(sentence: str) -> str:
    """A sentence as it can be printed and written anywhere, whatever names and texts it cites.

    Characters that cannot be printed (line ends, halves of surrogate pairs) become escapes, and of a very long one the
    middle becomes three dots.
    """
    if len(sentence) > _LONGEST_SENTENCE:
        half = _LONGEST_SENTENCE // 2
        sentence = f"{sentence[:half]} … {sentence[-half:]}"
    if sentence.isprintable():
        return sentence
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in sentence)


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, as a part of a sentence: "a, b, c and 2 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def warn(sentence: str) -> None:
    """A line on stderr, above progress bars."""
    from tqdm import tqdm

    tqdm.write(f"warning: {one_line(sentence)}", file=sys.stderr)


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one clear sentence that says what and, if known, the mend."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


def exit_on_input_error(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a command's ``main``: an `InputError` becomes one line on stderr and exit code 2, Ctrl-C 130, without a traceback."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED

    return wrapped
