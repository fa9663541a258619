"""The command line: one module per command, found by its file name, imported only when it is called."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys

from ..errors import UsageError, X86TablesError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any, NoReturn

BUG = 70
LONGEST = 540  # characters of a sentence


def names() -> list[str]:
    """The names of the commands."""
    return sorted(name[:-3] for name in os.listdir(__path__[0]) if name.endswith(".py") and not name.startswith("_"))


def module(name: str) -> Any:
    """The module of a command: `add_arguments(parser)`, `run(args) -> exit status`, and its docstring as help."""
    __import__(f"{__name__}.{name}")
    return sys.modules[f"{__name__}.{name}"]


def parser(name: str) -> argparse.ArgumentParser:
    """The argument parser of one command."""
    import argparse

    # nothing is translated: to look for a catalogue of its messages costs 1 ms, for `locale`
    vars(argparse)["_"] = str

    class Help(argparse.HelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            """Paragraphs as wide as the terminal."""
            from ..render.lines import paragraphs

            fill = super()._fill_text
            return "\n\n".join(part if kept else fill(part, width, indent) for part, kept in paragraphs(text))

    class Parser(argparse.ArgumentParser):
        columns = 90  # the terminal is asked only where help is wanted

        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message} (see x86tables {name} --help)")

        def format_help(self) -> str:
            from ..render.lines import width

            self.columns = width()
            return super().format_help()

        def _get_formatter(self) -> argparse.HelpFormatter:
            return Help(self.prog, width=self.columns)

    command = module(name)
    made = Parser(
        prog=f"x86tables {name}",
        description=command.__doc__,
        allow_abbrev=False,
    )
    command.add_arguments(made)
    return made


def summary(name: str) -> str:
    """The first line of a command's docstring, read from its source: to import them all takes five times as long."""
    with open(os.path.join(__path__[0], f"{name}.py"), encoding="utf-8") as source:
        return source.readline().strip().strip('"')


def _overview() -> str:
    lines = ["usage: x86tables COMMAND ...", "", "Make, show, judge and prove x86-64 descriptor tables.", ""]
    lines += [f"  {name:<10} {summary(name)}" for name in names()]
    lines += ["", "See x86tables COMMAND --help; x86tables --version."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. An error for the person is one sentence on standard error and status 2.

    Status 70 (EX_SOFTWARE of sysexits.h) is an error of ours: X86TABLES_DEBUG=1 prints where it is.
    """
    try:
        _require_output()
        if argv is None:
            gc.set_threshold(100_000)  # a short program that looks for cycles while it imports finds none
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        if argv is None:
            gc.freeze()  # nor does it look through all that it has once more, only to end
        return status
    except X86TablesError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader (a pager, head) has seen enough
        _drop_output()
        return 1
    except OSError as error:
        what = error.filename
        if what is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
            what = "standard output"  # every other file is named by what reads or writes it
            _drop_output()
        return _complain(f"{what or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        return _complain("not enough memory")
    except Exception as error:
        return _report(error)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from .. import __version__

        print(f"x86tables {__version__}")
        return 0
    if arguments[0] not in names():
        raise UsageError(f"unknown command {arguments[0]!r}; one of {', '.join(names())}")
    empty = next((option for option in arguments if option.startswith("--") and option.endswith("=--")), None)
    if empty is not None:  # argparse would make a list of it
        raise UsageError(f"{empty[:-3]}: a value is expected, not --")
    args = parser(arguments[0]).parse_args(arguments[1:])
    run = module(arguments[0]).run
    if (path := getattr(args, "printed", None)) is None:
        return int(run(args))
    from ..outputs import printing

    with printing(path, [value for name, value in vars(args).items() if name != "printed"]):
        return int(run(args))


def _require_output() -> None:
    """UsageError where standard output is closed. No file that is opened later gets the number of a closed stream."""
    streams = sys.stdin, sys.stdout, sys.stderr
    for stream in streams:
        if stream is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        raise UsageError("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and symbols are shown whatever is in them
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What could not be written is not tried again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _report(error: Exception) -> int:
    """Ask for a report of an unforeseen error; the exit status for that."""
    if os.environ.get("X86TABLES_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at is not None else "?"
    _complain(
        f"this is a bug in x86tables ({type(error).__name__} at {where}: {error}): please report it to its issue "
        "tracker, with the command, the file if it may be shared, and what X86TABLES_DEBUG=1 prints"
    )
    return BUG


def _complain(sentence: str) -> int:
    """Say on standard error, in one line whatever a file may be called, what is wrong; the exit status for that."""
    from ..machine.symbols import printable

    sentence = printable(sentence)
    if len(sentence) > LONGEST:  # it quotes text from outside
        begin, end = sentence[: LONGEST * 2 // 3], sentence[-LONGEST // 3 :]
        sentence = f"{begin} [... {len(sentence) - len(begin) - len(end)} characters ...] {end}"
    if sys.stderr is not None:  # closed
        print("x86tables:", sentence, file=sys.stderr)
    return 2
