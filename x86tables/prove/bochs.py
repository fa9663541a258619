"""Run machines on the Bochs CPU, in a child of this process: so that a crash of Bochs does not take it down."""

from __future__ import annotations

from importlib.util import find_spec

from ..delivery.simulate import UNKNOWN
from ..errors import NotThere
from . import workers
from .bochs_deviations import predict_bochs
from .run import MAXPHYADDR, TrialResult, compare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .bochs_cpu import Runner
    from .event_log import EventLog
    from .run import Trial

CPU = f"Bochs (bochscpu; {MAXPHYADDR} physical address bits)"


def _find() -> None:
    if not find_spec("bochscpu"):
        raise NotThere("Bochs is not installed: pip install bochscpu-python==0.3.1 (Linux on x86-64)")


def load() -> Runner:
    """Bochs in this process; NotThere when its package is not installed, or broken."""
    _find()
    try:
        from .bochs_cpu import Runner
    except ImportError as error:
        raise NotThere(f"bochscpu cannot be imported: {error}") from None
    return Runner()


def run(trials: list[Trial]) -> Iterator[TrialResult]:
    """Run each trial on Bochs and compare, in order. NotThere when its package is not installed."""
    _find()
    for trial, observed in workers.run(_prepare, trials, size=max(1, len(trials))):
        if isinstance(observed, workers.Crashed):
            yield TrialResult(trial, UNKNOWN, None, str(observed))
        else:
            yield compare(trial, observed, lambda one: predict_bochs(one.machine, one.stimulus, one.handler_stack))


def _prepare() -> Callable[[Trial], EventLog]:
    runner = load()
    return lambda trial: runner.run(trial.machine, trial.stimulus, trial.handler_stack, trial.event_log.most)
