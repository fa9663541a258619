"""How much work something was, however busy the machine is meanwhile."""

import sys


class Work:
    """Counts the functions that are called in a `with`, Python's own too."""

    calls = 0

    def __enter__(self) -> "Work":
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: object, event: str, argument: object) -> None:
        self.calls += event in ("call", "c_call")
