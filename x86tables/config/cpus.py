"""The CPUs of a configuration, each `count` written out, and addresses that are different for each."""

from __future__ import annotations

from .. import budgets
from ..records import Record
from . import keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .compiled import Address
    from .lines import Path
    from .read import Source
    from .scalars import Scalars


class DeclaredCpu(Record):
    """One CPU, and where it is declared; `index` counts those of the same declaration."""

    number: int
    index: int
    written: keys.CpuConfig
    path: Path

    def named(self, value: int | str) -> int | str:
        """A name with the CPU's number in it."""
        return value.replace("{cpu}", str(self.number)) if isinstance(value, str) else value

    def address(self, value: int | str | keys.Strided, scalars: Scalars, path: Path) -> Address:
        """An address of this CPU's own."""
        if isinstance(value, keys.Strided):
            return scalars.address(value.base, (*path, "base")).plus(self.index * value.stride)
        return scalars.address(self.named(value), path)


def expand(config: keys.Config, source: Source) -> list[DeclaredCpu]:
    """Every CPU in the order of the file. UsageError for none, or for too many."""
    several = isinstance(config.cpu, list)
    written = config.cpu if isinstance(config.cpu, list) else [config.cpu]
    if not 0 < (count := sum(cpu.count for cpu in written)) <= budgets.CPUS:
        raise source.mistake(("cpu",), f"{count:,} CPUs: 1 to {budgets.CPUS:,} expected")
    each = [(index, cpu, place) for place, cpu in enumerate(written) for index in range(cpu.count)]
    return [
        DeclaredCpu(number, index, cpu, ("cpu", place) if several else ("cpu",))
        for number, (index, cpu, place) in enumerate(each)
    ]
