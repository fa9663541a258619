"""Run a machine on the Bochs CPU, in a child of this process: `run` for one, and what is wanted of the package."""

from __future__ import annotations

from ..errors import NotThere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .bochs_cpu import Runner


def load() -> Runner:
    """Bochs in this process; NotThere when its package is not installed."""
    try:
        import bochscpu  # noqa: F401
    except ImportError:
        raise NotThere("Bochs is not installed: pip install 'x86tables[bochs]' (Linux on x86-64)") from None
    from .bochs_cpu import Runner

    return Runner()
