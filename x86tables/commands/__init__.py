"""The command line: one module per command, found by its file name, imported only when it is called."""

from __future__ import annotations

import io
import os
import sys

from ..errors import UsageError, X86TablesError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any, NoReturn


def names() -> list[str]:
    """The commands there are."""
    return sorted(name[:-3] for name in os.listdir(__path__[0]) if name.endswith(".py") and not name.startswith("_"))


def module(name: str) -> Any:
    """The module of a command: `add_arguments(parser)`, `run(args) -> exit status`, and its docstring as help."""
    __import__(f"{__name__}.{name}")
    return sys.modules[f"{__name__}.{name}"]


def parser(name: str) -> argparse.ArgumentParser:
    """The argument parser of one command."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message} (x86tables {name} --help tells more)")

    command = module(name)
    made = Parser(
        prog=f"x86tables {name}",
        description=command.__doc__,
        # a width of its own keeps argparse from importing shutil (3 ms) to ask the terminal
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=90),
        allow_abbrev=False,
    )
    command.add_arguments(made)
    return made


def _overview() -> str:
    lines = ["usage: x86tables COMMAND ...", "", "Make, show, judge and prove x86-64 descriptor tables.", ""]
    lines += [f"  {name:<8} {module(name).__doc__.splitlines()[0]}" for name in names()]
    lines += ["", "x86tables COMMAND --help tells more; x86tables --version."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. An error for the person is one sentence on standard error and status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and symbols are shown whatever is in them
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0 if arguments else 2
        if arguments[0] == "--version":
            from .. import __version__

            print(f"x86tables {__version__}")
            return 0
        if arguments[0] not in names():
            raise UsageError(f"no command {arguments[0]!r}; one of {', '.join(names())}")
        empty = next((option for option in arguments if option.startswith("--") and option.endswith("=--")), None)
        if empty is not None:  # argparse would make a list of it
            raise UsageError(f"{empty[:-3]}: a value is expected, not --")
        args = parser(arguments[0]).parse_args(arguments[1:])
        status = module(arguments[0]).run(args)
        sys.stdout.flush()
        return int(status)
    except X86TablesError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader (a pager, head) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        return _complain(f"{error.filename or 'file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        return 130


def _complain(sentence: str) -> int:
    """Say on standard error, in one line whatever a file may be called, what is wrong; the exit status for that."""
    from ..machine.symbols import printable

    print("x86tables:", printable(sentence), file=sys.stderr)
    return 2
