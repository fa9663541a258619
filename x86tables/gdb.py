"""The commands inside gdb: `source` the file that `python -m x86tables.gdb` names, then `x86 check`.

    x86 gdt | idt | tss | ldt           the tables of the CPU that is selected (a thread)
    x86 check                           what happens when a stack runs into its guard, on every CPU
    x86 trace VECTOR                    one delivery, step by step, from where the CPU is
    x86 error-code VALUE                the entry that an error code points at
    x86 dump | scan | decode | explain  as x86tables has them

gdb is connected to QEMU (`target remote :1234`). Options are those of `x86tables COMMAND --help`.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

TABLES = ("gdt", "idt", "tss", "ldt")


def words(arguments: list[str], cpu: int | None) -> list[str]:
    """The command line of x86tables for one of `x86`; `cpu` is the one that is selected."""
    name, *rest = arguments
    selected = [] if cpu is None or "--cpu" in rest else ["--cpu", str(cpu)]
    if name in TABLES:
        return ["dump", "gdb:", "--table", name, *selected, *rest]
    if name == "trace":
        return ["trace", "gdb:", "--vector", *rest, *selected]
    if name == "error-code":
        return ["decode", *rest, "--as", "error-code", "--in", "gdb:", *selected]
    if name in ("check", "dump"):
        return [name, "gdb:", *rest]
    return [name, *rest]


def install(gdb: object) -> None:
    """Define `x86` in this gdb."""
    from contextlib import contextmanager

    api: Any = gdb

    @contextmanager
    def shown() -> Iterator[None]:
        """As wide as gdb's pages, and coloured where gdb's own answers are."""
        before = dict(os.environ)
        width = api.parameter("width")
        os.environ["COLUMNS"] = str(width or 100)
        if api.parameter("style enabled") and os.isatty(1) and os.environ.get("TERM") != "dumb":
            os.environ.setdefault("FORCE_COLOR", "1")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    class X86(api.Command):  # type: ignore[misc]
        __doc__ = (
            "Descriptor tables, and how the CPU delivers an event by them."
            + (__doc__ or "").partition("`x86 check`.")[2]
        )

        def __init__(self) -> None:
            super().__init__("x86", api.COMMAND_DATA)

        def invoke(self, argument: str, from_tty: bool) -> None:
            """Run one command; a failure is gdb's error too, so that a script of its stops."""
            from x86tables.commands import main

            arguments = api.string_to_argv(argument)
            if not arguments:
                print(self.__doc__)
                return
            thread = api.selected_thread()
            with shown():
                status = main(words(arguments, thread.num - 1 if thread else None))
            if status not in (0, 1):
                raise api.GdbError(f"x86 {arguments[0]} failed")

        def complete(self, text: str, word: str) -> list[str]:
            """The names of the commands."""
            names = (*TABLES, "check", "decode", "dump", "error-code", "explain", "scan", "trace")
            return [name for name in names if name.startswith(word)] if " " not in text else []

    X86()


if __name__ == "__main__":
    try:
        import gdb
    except ImportError:
        print(os.path.abspath(__file__))
    else:
        if sys.version_info < (3, 11):  # noqa: UP036 - gdb brings a Python of its own
            raise gdb.GdbError(f"x86tables needs Python 3.11; this gdb has {sys.version.split()[0]}")
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        install(gdb)
