"""What all commands have in common: how they read their flags, and how they end.

A mistake of the user is one line on stderr and exit code 2, Ctrl-C is one line and 130, and a
reader that closes the pipe (`| head -1`) ends a command in silence.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile

from nanotir.checks import check_value, unknown, visible
from nanotir.tools.tool import DeadTool


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake, and the nearest flag for an unknown one.

    Flags are not abbreviated. A value may be empty only for the flags in `may_be_empty`, because
    an empty value is mostly a variable that is not set.
    """

    def __init__(self, prog: str, description: str, may_be_empty: Iterable[str] = ()):
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.may_be_empty = may_be_empty
        # argparse: what looks like a negative number is no flag. Nor is -5x, or -x^2.
        self._negative_number_matcher = re.compile(r"-[\d.(\\]|-[a-z][^a-z=]")

    def parse_args(self, arguments=None):
        arguments = sys.argv[1:] if arguments is None else arguments
        arguments = [dashed(argument) for argument in arguments]
        for given in takewhile("--".__ne__, arguments):
            if given.startswith("--"):  # before argparse says what else is missing
                self.check_flag(given)
        options, rest = self.parse_known_intermixed_args(arguments)
        if rest and rest[0].startswith("-"):
            self.check_flag(rest[0])
        if rest:
            self.error(f"'{rest[0]}' belongs to no flag")
        for action in self._actions:
            value = getattr(options, action.dest, None)
            words = value if isinstance(value, list) else [value]
            if "" in words and action.dest not in self.may_be_empty:
                name = action.option_strings[-1] if action.option_strings else action.dest
                self.error(f"{name} is empty: is a variable not set?")
        return options

    def check_flag(self, argument: str):
        """Stop at a flag that there is not, and name the nearest one."""
        given = argument.split("=")[0]
        if given in self._option_string_actions:
            return
        if given[2:] in [action.dest for action in self._actions if not action.option_strings]:
            self.error(f"no flag '{given}': give its value alone, without '{given}'")
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        longer = [flag for flag in known if flag.startswith(given)]
        self.error(unknown("flag", given, longer or known))

    def error(self, message: str):
        fail(self.prog.removeprefix("python -m nanotir."), message)


def number(hint):
    """The argparse type of a number whose range is declared as for a setting."""

    def convert(text: str):
        value = hint.__origin__(text)
        try:
            check_value("it", value, hint)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    convert.__name__ = hint.__origin__.__name__  # argparse names it for what is no number
    return convert


def dashed(argument: str) -> str:
    """--eval_data as --eval-data: a field's own name will do. Values are left alone."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def fail(name: str, message: str):
    print(f"{name}: {visible(' '.join(message.splitlines()))}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Around all that the command `name` does: however it ends, it says so in one line."""
    # Python leaves None in place of an output that is closed (`>&-`).
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)  # as a process that SIGPIPE has killed
    except KeyboardInterrupt as stopped:
        # What a run has saved is a result. Otherwise stdout may be a file of results.
        saved = str(stopped)
        print(saved or "interrupted", file=sys.stdout if saved else sys.stderr)
        sys.exit(130)
    except OSError as error:
        where = f": '{error.filename}'" if error.filename else ""
        fail(name, f"{error.strerror or error}{where}")
    except (ValueError, DeadTool) as error:
        fail(name, str(error))
