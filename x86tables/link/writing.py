"""The patched file, written all at once; and a finished one read again."""

from __future__ import annotations

import os

from ..errors import ImageError, X86TablesError
from ..outputs import replacing
from .kernel import read
from .plan import entry_name
from .plan import plan as make_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plan import Patch, Plan


def patched(plan: Plan) -> bytes:
    """The file with the tables in it; every other byte is as it was."""
    data = bytearray(plan.kernel.data[:])
    for patch in plan.patches:
        data[patch.offset : patch.offset + len(patch.data)] = patch.data
    return bytes(data)


def write(plan: Plan, out: str) -> None:
    """Write the patched kernel, with the mode of the original: a new file takes the name when it is complete.

    It is read again before: ImageError, and nothing is written, when it is not as declared.
    """
    out = os.path.realpath(out)  # a link goes on naming the file that it names
    with replacing([out], os.stat(plan.kernel.path).st_mode & 0o7777) as (complete,):
        with open(complete, "wb") as file:
            file.write(patched(plan))
        _verify(plan, complete, out)


def _verify(plan: Plan, temporary: str, out: str) -> None:
    """ImageError when the finished file, read as any kernel is, does not have every table where it belongs."""
    try:
        again = make_plan(read(temporary, plan.kernel.base), plan.tables)
        wrong = stale(again)
    except X86TablesError as error:
        wrong = [str(error).removeprefix(f"{temporary}: ")]
    if wrong:
        raise ImageError(f"{out}: not written, because the patched file would be damaged: {wrong[0]}")


def stale(plan: Plan) -> list[str]:
    """What the file holds that is not as declared and resolved now: a sentence for each entry of a table."""
    return [line for patch in plan.patches for line in _stale(plan, patch)]


def _stale(plan: Plan, patch: Patch) -> Iterator[str]:
    found = plan.kernel.data[patch.offset : patch.offset + len(patch.data)]
    if found == patch.data:
        return
    if not any(found):
        yield f"{patch.table.name} at {patch.address:#x} is empty: `x86tables link` has not filled it in"
        return
    for item in patch.table.items:
        kind = type(item.value)
        old = kind.parse(found[item.offset : item.offset + kind.size])
        wanted = kind.parse(patch.data[item.offset : item.offset + kind.size])
        if not any(old) and any(wanted):
            yield f"{entry_name(patch.table, item)} is empty"
            continue
        for field in kind.fields:
            was, now = old[field.name], wanted[field.name]
            if was != now and field.name in item.addresses:
                place = plan.kernel.labels.name(was)
                lies = f" ({place})" if place else ""
                yield (
                    f"{entry_name(patch.table, item)} is stale: {field.name} is {was:#x}{lies}, "
                    f"but {item.addresses[field.name]} is {now:#x}"
                )
            elif was != now:
                yield f"{entry_name(patch.table, item)}: {field.name} is {int(was):#x}, declared as {int(now):#x}"
