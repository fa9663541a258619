"""The manual page, in man(7), from the parsers of the commands."""

from __future__ import annotations

from .lines import paragraphs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .completion import Argument, Command

SUMMARY = "make, show, judge and prove x86-64 descriptor tables"
STATUS = {
    "0": "what was asked for holds; of check: each CPU survives, and no finding is an error",
    "1": "the answer is no: a verdict other than survives, an error among the findings, tables that differ",
    "2": "the command line is wrong, or a file cannot be read; one sentence on standard error says why",
    "70": "an error of x86tables itself; the sentence says where to report it",
}
ENVIRONMENT = {
    "NO_COLOR": "if not empty, there are no colours",
    "FORCE_COLOR": "if not empty, there are colours where the output is not a terminal too",
    "COLUMNS": "how wide lines may be, from 60 to 100",
    "X86TABLES_DEBUG": "if not empty and not 0, an error of x86tables itself shows where it is",
}


def manual(commands: Sequence[Command]) -> Iterator[str]:
    """The lines of x86tables(1)."""
    from .. import __version__

    yield f'.TH X86TABLES 1 "" "x86tables {__version__}" "User Commands"'
    yield ".SH NAME"
    yield f"x86tables \\- {_text(SUMMARY)}"
    yield ".SH SYNOPSIS"
    yield ".B x86tables\n.I COMMAND\n.RI [ argument ...]"
    yield ".SH DESCRIPTION"
    yield (
        "A kernel that overflows its stack lives or dies by three small tables: the GDT, the TSS with its interrupt "
        "stacks\n(IST), and the IDT. x86tables makes them, shows them inside any image, and judges them."
    )
    yield ".SH COMMANDS"
    for command in commands:
        yield f".SS {command.name}"
        yield from _description(command.description)
        for argument in command.arguments:
            if argument.flags[:1] != ("-h",):
                yield from _argument(argument)
    for title, rows in (("EXIT STATUS", STATUS), ("ENVIRONMENT", ENVIRONMENT)):
        yield f".SH {title}"
        for name, meaning in rows.items():
            yield f".TP\n.B {name}\n{_text(meaning)}"


def _description(text: str) -> Iterator[str]:
    for number, (part, kept) in enumerate(paragraphs(text)):
        yield from (".PP",) if number else ()
        yield from (".nf",) if kept else ()
        yield from map(_text, part.splitlines())
        yield from (".fi",) if kept else ()


def _argument(argument: Argument) -> Iterator[str]:
    value = f"\\fI{_text(argument.value)}\\fR" if argument.value else ""
    flags = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in argument.flags)
    yield ".TP"
    yield " ".join(part for part in (flags, value) if part)
    choices = f"one of {argument.listed}" if argument.listed else ""
    yield _text("; ".join(part for part in (argument.help, choices) if part) or "see above")


def _text(text: str) -> str:
    """Text that roff takes as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{text}" if text[:1] in (".", "\\") else text
