"""The command line: `livereel generate`, `batch`, `serve`, `info`, `eval`, `convert` and more.

Each command is a module with `add` (its options) and `run` (its work). Options are checked before
anything heavy is imported, so that a mistake is told at once. Errors are one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

from .. import __version__
from ..errors import InputError, LiveReelError
from ..memory import shortage_told
from . import batch, bench, convert, embed, eval, export, generate, info, serve, tune

_COMMANDS = (generate, batch, serve, info, eval, convert, export, embed, tune, bench)
_USAGE_ERROR = 2
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `InputError`, told in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code: 0, 2 for an error, 130 for Ctrl-C."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = _build_parser().parse_args(argv)
        with shortage_told():
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except (LiveReelError, ImportError) as error:  # the native core, say, was never built
        print(f"livereel: {' '.join(str(error).split())}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        print("livereel: stopped", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; keep the interpreter from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a name that is too long, a disk that is full
        where = "" if error.filename is None else f"{error.filename!s:.80}: "
        print(f"livereel: {where}{error.strerror or error}", file=sys.stderr)
        return _USAGE_ERROR


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="livereel",
        description="Live video from trained video-diffusion weights.",
        epilog="livereel COMMAND --help shows a command's options and examples.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"livereel {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=module.SUMMARY,
            description=module.SUMMARY[0].upper() + module.SUMMARY[1:] + ".",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add(command)
        command.set_defaults(run=module.run)
    return parser


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Tell our own warnings in one line; a user can do nothing about those of libraries."""
    if category.__module__.startswith("livereel."):
        print(f"livereel: warning: {' '.join(str(message).split())}", file=sys.stderr)
