"""Wait for a running machine's triple fault, and say why it came.

LIVE is qmp:SOCKET or qmp:HOST:PORT of a QEMU that was started with -no-reboot -no-shutdown, so that it stops where it
would reset; or, behind --, a QEMU command that is started so. When it stops, where each CPU is and what `check` answers
is printed, and the machine is kept as a small core for `check`, `trace` and `diff`. With -d int,cpu_reset -D FILE in
the command, what `log` says follows. Exit status 1 when it stopped so, 0 when QEMU ended by itself.
"""

from __future__ import annotations

import os

from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..api import Image
    from ..machine.symbols import Symbols


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `watch`."""
    parser.add_argument("live", metavar="LIVE", help="a running machine, or, behind --, the QEMU to start")
    parser.add_argument("guest", nargs="*", metavar="-- QEMU-ARGUMENT", help="its arguments")
    parser.add_argument("--symbols", metavar="FILE", help="an ELF file with symbols, or a System.map")
    parser.add_argument("-o", "--output", metavar="FILE", default="x86tables.core", help="the core (x86tables.core)")


def run(args: argparse.Namespace) -> int:
    """Wait, and report."""
    from .. import live

    if live.named(args.live):
        if not args.live.startswith("qmp:"):
            raise UsageError(f"{args.live}: QEMU says by QMP why it stopped: qmp:SOCKET or qmp:HOST:PORT expected")
        if args.guest:
            raise UsageError("either LIVE or a QEMU command behind --")
        from ..live.watch import watch

        report(args, args.live, watch(args.live, live.address(args.live)) or "")
        return 1
    return started(args, [args.live, *args.guest])


def started(args: argparse.Namespace, command: list[str]) -> int:
    """The same of a QEMU that is started for it."""
    import shutil
    import tempfile
    import time

    from ..live.watch import ARGUMENTS, watch
    from ..prove.processes import exceptions_from_signals, running
    from ..render.lines import output

    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]}: neither qmp:SOCKET nor a program")
    with tempfile.TemporaryDirectory(prefix="x86tables-") as folder, exceptions_from_signals():
        socket = os.path.join(folder, "qmp")
        words = [*command, *ARGUMENTS, "-qmp", f"unix:{socket},server=on,wait=off"]
        with running(words) as process:
            while not os.path.exists(socket) and process.poll() is None:
                time.sleep(0.02)
            status = None
            if process.poll() is None:
                status = watch(f"qmp:{socket}", socket, lambda: process.poll() is not None)
            if status is None:
                ended = f" with status {process.returncode}" if process.returncode else ""
                output([f"{command[0]}: ended by itself{ended}, without a shutdown that stops it"])
                return 0
            image = report(args, f"qmp:{socket}", status, command[0])
    if "-D" in command[:-1]:
        _log(command[command.index("-D") + 1], image.symbols)
    return 1


def report(args: argparse.Namespace, path: str, status: str, title: str | None = None) -> Image:
    """Print what has become of it, and keep the core; the machine as it is held."""
    from .. import api
    from ..render.lines import output
    from ..render.watch import text
    from .capture import keep

    image = api.open(path, symbols=args.symbols)
    output(text(title or path, status, image.check(), image.symbols))
    keep(image, args.output)
    output(["", f"{args.output}: kept; `x86tables check {args.output}` says it step by step"])
    return image


def _log(path: str, symbols: Symbols) -> None:
    from ..qemulog import chains, entries
    from ..qemulog.report import report as reported
    from ..render.lines import output
    from ..render.log import text

    output(["", *text(path, reported(chains.read_log(entries.read(path)), None), symbols)])
