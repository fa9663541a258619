"""Many pieces of work in forked children: whatever one of them does to its process, the caller lives."""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import traceback
import warnings

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TypeVar

    T = TypeVar("T")

SECONDS = 20  # that one piece may take


class Crashed(Record):
    """A piece of work that ended its process: by this signal, or with exit status -`signal`."""

    signal: int

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name if self.signal > 0 else f"exit status {-self.signal}"
        return f"the emulator's process ended: {name}"


def run(
    prepare: Callable[[], Callable[[T], Any]], items: Sequence[T], workers: int = 1, size: int = 200
) -> Iterator[tuple[T, Any]]:
    """(item, result) for all `items`, as they come; Crashed for one that took its process with it.

    `prepare` is called once in each child and gives the function to be called with each item; a child does `size`.
    """
    queue = [list(items[start : start + size]) for start in range(0, len(items), size)]
    queue.reverse()
    with selectors.DefaultSelector() as selector:
        while queue or selector.get_map():
            while queue and len(selector.get_map()) < workers:
                _start(selector, prepare, queue.pop())
            for key, _ in selector.select():
                child: _Child = key.data
                if data := os.read(child.pipe, 1 << 16):
                    yield from child.results(data)
                    continue
                selector.unregister(child.pipe)
                os.close(child.pipe)
                _, status = os.waitpid(child.process, 0)
                if child.left:
                    yield child.left.pop(0), Crashed(-os.waitstatus_to_exitcode(status))
                if child.left:
                    queue.append(child.left)


class _Child:
    def __init__(self, process: int, pipe: int, items: list[Any]) -> None:
        self.process, self.pipe, self.left, self.data = process, pipe, items, b""

    def results(self, data: bytes) -> Iterator[tuple[Any, Any]]:
        """The results that are complete by now, each behind its length."""
        self.data += data
        while len(self.data) >= 4:
            end = 4 + int.from_bytes(self.data[:4], "little")
            if len(self.data) < end:
                return
            result, self.data = pickle.loads(self.data[4:end]), self.data[end:]
            yield self.left.pop(0), result


def _start(selector: selectors.BaseSelector, prepare: Callable[[], Callable[[Any], Any]], items: list[Any]) -> None:
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that the child will not have: it needs none, and leaves by _exit
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        os.close(read)
        _work(prepare, items, write)
    os.close(write)
    selector.register(read, selectors.EVENT_READ, _Child(process, read, items))


def _work(prepare: Callable[[], Callable[[Any], Any]], items: list[Any], pipe: int) -> None:
    """A child's life; it never returns."""
    status = 1
    try:
        work = prepare()
        with os.fdopen(pipe, "wb") as out:
            for item in items:
                signal.alarm(SECONDS)
                data = pickle.dumps(work(item))
                out.write(len(data).to_bytes(4, "little") + data)
                out.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
