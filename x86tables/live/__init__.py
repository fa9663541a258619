"""Running machines: `qmp:SOCKET` and `qmp:HOST:PORT`, `gdb:...` alike, name one as a path names an image."""

from __future__ import annotations

from contextlib import contextmanager

from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..readers import Contents
    from .stopping import Guest

HERE = "gdb:"  # inside gdb, the machine that it is connected to
PROTOCOLS = ("qmp", "gdb")
FORMS = "qmp:SOCKET, qmp:HOST:PORT or gdb:HOST:PORT"


def named(path: str) -> bool:
    """Whether a path names a running machine."""
    return path.partition(":")[0] in PROTOCOLS and ":" in path


def label(path: str) -> str:
    """What it is called in answers."""
    return "QEMU" if path == HERE else path


def address(path: str) -> str | tuple[str, int]:
    """Where it is asked: the path of a UNIX socket, or host and port. UsageError for anything else."""
    place = path.partition(":")[2]
    host, colon, port = place.rpartition(":")
    if colon and "/" not in port and port.isascii() and port.isdecimal() and int(port) < 1 << 16:
        return host.strip("[]"), int(port)
    if not place or "\0" in place:
        raise UsageError(f"{path}: {FORMS} expected")
    return place


@contextmanager
def connected(path: str) -> Iterator[Contents]:
    """The machine, stopped for as long as the block takes; one that ran goes on then, whatever happens in it."""
    if path == HERE:
        from .session import contents

        yield contents(label(path))
        return
    from .stopping import stopped

    place = address(path)

    def connect() -> Guest:
        if path.startswith("gdb:"):
            from .gdb import Stub

            return Stub(path, place)
        from .qmp import Monitor

        return Monitor(path, place)

    with stopped(connect) as guest:
        yield guest


def dump(path: str, file: str) -> None:
    """Have the machine's host write a core of all its memory; the machine is stopped meanwhile."""
    from .qmp import Monitor

    if not path.startswith("qmp:"):
        raise UsageError(f"{path}: a core of all memory is written by QEMU, asked by QMP: qmp:SOCKET or qmp:HOST:PORT")
    with Monitor(path, address(path)) as monitor:
        monitor.execute("dump-guest-memory", paging=False, protocol=f"file:{file}")
