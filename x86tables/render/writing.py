"""What `build` and `link` say of tables that are written: what the checks found, which bytes, what is stale."""

from __future__ import annotations

from . import findings
from .lines import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..assessment import Assessment
    from ..link import Plan
    from ..machine.image import Snapshot


def checked(image: Snapshot, assessments: Sequence[Assessment]) -> Iterator[str]:
    """What the checks found, a few lines for each CPU."""
    yield f"{image.path}: {len(image.machines)} CPU{'s' if len(image.machines) != 1 else ''}"
    for remark in image.remarks:
        yield from wrap(f"  {remark}", "    ")
    for each in assessments:
        yield from ("", f"CPU {each.cpu}  {each.verdict}: {each.reason}", f"  the stack in use: {each.stack.verdict}")
        yield from findings.lines(each)
    yield ""


def places(plan: Plan) -> Iterator[str]:
    """Where each table is, in memory and in the file."""
    width = max(len(patch.table.name) for patch in plan.patches)
    for patch in plan.patches:
        where = f"{len(patch.data):5,} bytes at offset {patch.offset:#x} of the file"
        yield f"  {patch.table.name:<{width}}  {patch.address:#x}  {where}"


def written(plan: Plan, out: str) -> Iterator[str]:
    """What is patched, asked before it is."""
    found = (plan.kernel.data[patch.offset : patch.offset + len(patch.data)] for patch in plan.patches)
    changed = sum(
        a != b for old, patch in zip(found, plan.patches, strict=True) for a, b in zip(old, patch.data, strict=True)
    )
    yield f"{out}: {len(plan.patches)} tables patched, {changed:,} bytes changed"
    yield from places(plan)


def verified(plan: Plan, stale: Sequence[str]) -> Iterator[str]:
    """Whether a file is as declared, and what is not."""
    if stale:
        yield f"{plan.kernel.path}: not as {plan.tables.source.path} declares it"
        yield from (f"  {line}" for line in stale)
    else:
        yield f"{plan.kernel.path}: as {plan.tables.source.path} declares it"
        yield from places(plan)
