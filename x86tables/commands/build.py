"""Make tables from a configuration: bytes, sources, linker script.

What is about to be written is checked before: a configuration that does not survive a stack overflow, or in which a
rule finds an error, is refused with status 1, and nothing is written. Where addresses are needed and the configuration
has none, they come from the linked kernel: --symbols KERNEL.elf.
"""

from __future__ import annotations

import os

from ..delivery.simulate import LOOPS, TRIPLE_FAULT
from ..errors import NotThere, UsageError
from ..outputs import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..checks import Report
    from ..config import CompiledTables
    from ..config.compiled import Lookup
    from ..machine.image import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `build`."""
    from ..emit import names

    parser.add_argument("config", metavar="CONFIG", help="a TOML file; `x86tables schema` says what is in it")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="where the files go; made if need be")
    parser.add_argument("--emit", metavar="WHAT,...", required=True, help=f"of {', '.join(names())}")
    parser.add_argument("--symbols", metavar="FILE", help="the linked kernel (its segments count too), or a System.map")
    parser.add_argument("--no-check", action="store_true", help="write whatever the checks say")


def run(args: argparse.Namespace) -> int:
    """Check, then write; 1 when the checks refuse it."""
    from ..config.compiler import compile_config
    from ..config.kernel import resolve
    from ..config.machines import image
    from ..config.read import read

    tables = compile_config(*read(args.config))
    find, segments = resolve(tables, args.symbols)
    files = _files(tables, find, args.emit.split(","))
    from ..render.text import output

    told: list[str] = []
    if not args.no_check:
        refused = judged(tables, image(tables, find, segments), told)
        if refused:
            output([*told, f"nothing was written: {refused}; --no-check writes it all the same"])
            return 1
    write_all(args.output, files)
    output([*told, *(f"{os.path.join(args.output, name)}: {len(data):,} bytes" for name, data in files.items())])
    return 0


def _files(tables: CompiledTables, find: Lookup, languages: list[str]) -> dict[str, bytes]:
    from ..emit import emit

    files: dict[str, bytes] = {}
    for language in languages:
        try:
            files |= emit(language, tables, find)
        except NotThere as error:
            raise UsageError(f"--emit {language}: {error}") from None
    return files


def judged(tables: CompiledTables, image: Image, lines: list[str]) -> str:
    """Why the checks refuse tables that are about to be written, "" when they do not; and what there is to say of them.

    A verdict that is not known refuses nothing: it depends on memory that was not declared.
    """
    from .. import checks
    from ..checks import selection
    from ..delivery.scenarios import judge
    from ..render import findings
    from ..render.lines import wrap

    rules = selection.select(tables.config.check.select, tables.config.check.ignore)
    refused = []
    lines.append(f"{image.path}: {len(image.machines)} CPU{'s' if len(image.machines) != 1 else ''}")
    for remark in image.remarks:
        lines += wrap(f"  {remark}", "    ")
    for report in checks.judge(image, image.machines, rules):
        judgement = judge(report.machine)
        lines += ["", f"CPU {report.machine.cpu}  {judgement.verdict}: {judgement.overflow.reason}"]
        lines.append(f"  the stack in use: {judgement.stack.verdict}")
        lines += findings.lines(report)
        refused += list(_refusals(report.machine.cpu, judgement.verdict, report))
    lines.append("")
    return "; ".join(dict.fromkeys(refused))


def _refusals(cpu: int, verdict: str, report: Report) -> Iterator[str]:
    if verdict in (TRIPLE_FAULT, LOOPS):
        yield f"CPU {cpu} does not survive a stack overflow ({verdict})"
    for finding in report.findings:
        if finding.severity == "error":
            yield f"{finding.rule} is an error"
