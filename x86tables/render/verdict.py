"""Verdicts as text: two answers in the first line, why in the second, then the trace."""

from __future__ import annotations

from ..delivery.simulate import HANDLER_STACK, SURVIVES
from ..machine.probe import Fault, FaultKind
from ..tables.vectors import label, ranges
from . import findings
from .lines import coloured, wrap
from .trace import loop, simulation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..assessment import Assessment
    from ..delivery.extent import Extent
    from ..delivery.scenarios import Scenario, Variant
    from ..delivery.stacks import InterruptStack, StackInUse
    from ..machine.image import Snapshot
    from ..machine.symbols import Symbols


def check(
    image: Snapshot, assessments: Iterable[Assessment], all_steps: bool = False, problems: Iterable[str] = ()
) -> Iterator[str]:
    """The lines that `check` prints: the image's problems; per CPU the two answers, why, the trace, the interrupt
    stacks, the findings."""
    count = len(image.machines)
    yield f"{image.path}: {image.format}, {count} CPU{'s' if count != 1 else ''}"
    for remark in image.remarks:
        yield from wrap(f"  note: {remark}", "    ")
    for problem in problems:
        yield from wrap(f"  {coloured('error')}: {problem}", "    ")
    if image.format == "elf" and any(machine.space.paging.mode == "flat" for machine in image.machines):
        import shlex

        yield from wrap(
            "  note: a linked kernel has neither page tables nor registers. Boot it and take a dump: "
            "`dump-guest-memory FILE` in QEMU's monitor; "
            f"then `x86tables check FILE --symbols {shlex.quote(image.path)}`",
            "    ",
        )
    full: dict[object, int] = {}  # the outline of a CPU shown in full -> its number
    same: dict[object, int] = {}  # the same with the stack in use
    alike: list[int] = []  # CPUs that fare like the CPU `like`
    like = 0
    for assessment in assessments:
        key = kind(assessment)
        outline = key[0]
        if key in same and not all_steps:
            if alike and like != same[key]:
                yield from _alike(alike, like)
                alike = []
            like = same[key]
            alike.append(assessment.cpu)
            continue
        yield from _alike(alike, like)
        alike, same[key] = [], assessment.cpu
        yield ""
        yield from answers(assessment, image.symbols)
        if outline in full and not all_steps:
            yield f"  the rest is like CPU {full[outline]}"
            continue
        full[outline] = assessment.cpu
        yield from _details(assessment, image.symbols, all_steps)
        yield from findings.lines(assessment)
    yield from _alike(alike, like)


def kind(assessment: Assessment) -> tuple[object, ...]:
    """What CPUs that are shown once have in common."""
    return assessment.outline, assessment.stack.verdict, bool(assessment.overflow.remarks)


def _alike(cpus: list[int], like: int) -> Iterator[str]:
    """One line for CPUs that fare like another one; runs of three and more as `1..63`."""
    if cpus:
        yield ""
        yield f"CPU{'s' if len(cpus) > 1 else ''} {ranges(cpus)}  like CPU {like}"


def answers(assessment: Assessment, symbols: Symbols) -> Iterator[str]:
    """The first screen: the two answers, why, what to fix first, and the stack in use."""
    machine, overflow = assessment.machine, assessment.overflow
    yield from wrap(f"CPU {machine.cpu}  {coloured(assessment.verdict)}{answer(assessment)}", "       ")
    yield from wrap(f"  why    {overflow.reason}{handler_name(overflow, symbols)}", "         ")
    if not machine.wide:
        return
    if (finding := assessment.first_to_fix) is not None:
        yield from wrap(f"  fix    {finding.rule}: {findings.fix(finding)}", "         ")
    yield from wrap(f"  stack  {stack_line(assessment.stack)}", "         ")
    for remark in overflow.remarks:
        yield from wrap(f"  note   {remark}", "         ")


def _details(assessment: Assessment, symbols: Symbols, all_steps: bool) -> Iterator[str]:
    """What was assumed, the trace that decided, the other scenarios, and the interrupt stacks."""
    machine, overflow = assessment.machine, assessment.overflow
    if not machine.wide:
        return
    if machine.assumed:
        yield from wrap(f"  assumed: {'; '.join(machine.assumed)}", "         ")
    yield from _scenario(overflow, symbols, all_steps)
    told = {_ending(overflow)}
    for scenario in assessment.scenarios:
        if scenario is not overflow:
            yield ""
            yield from wrap(
                f"  {scenario.name}: {coloured(scenario.verdict)}: {_reason(scenario, assessment.stack)}", "    "
            )
            yield from _variants(scenario, all_steps)
            bad = scenario.worst is not None and scenario.worst.verdict != SURVIVES
            if all_steps or (bad and _ending(scenario) not in told):
                yield from _scenario(scenario, symbols, all_steps)
            told.add(_ending(scenario))
    if assessment.interrupt_stacks:
        yield ""
        yield from wrap(
            f"  interrupt stack sizes ({HANDLER_STACK} bytes let a handler start; printing a panic takes more)", "    "
        )
        yield from (f"    {line}" for line in map(_interrupt_stack, assessment.interrupt_stacks))


def _reason(scenario: Scenario, stack: StackInUse) -> str:
    """Why, in a sentence also where the stack's reason names a page-table entry alone."""
    guard = stack.guard
    if scenario.verdict == "guarded" and guard is not None and scenario.reason == guard.fault.why:
        return f"the page below refuses a push ({scenario.reason})"
    return scenario.reason


def _ending(scenario: Scenario) -> tuple[object, ...] | None:
    """How the variant that decided went: what ends alike is traced once."""
    simulation = None if scenario.worst is None else scenario.worst.simulation
    return None if simulation is None else simulation.outline


def answer(assessment: Assessment) -> str:
    """What follows the verdict in the first line: the answer about the stack in use."""
    stack = assessment.stack
    if not assessment.machine.wide:
        return ""
    condition = " if a guard page is hit" if assessment.verdict != "unknown" else ""
    answers = {
        "guarded": "the stack in use is guarded",
        "silent-corruption": "the stack in use has none: an overflow silently corrupts memory",
        "unknown": "whether the stack in use is guarded is not known",
        "not-judged": "the stack in use is not judged",
    }
    return f"{condition}; {answers[stack.verdict]}"


def handler_name(scenario: Scenario, symbols: Symbols) -> str:
    """` (asm_exc_double_fault)`: the handler that runs in the end, where it has a name."""
    simulation = scenario.worst.simulation if scenario.worst else None
    if simulation is None or simulation.outcome != SURVIVES or simulation.registers.rip is None:
        return ""
    name = symbols.place(simulation.registers.rip)
    return f" ({name})" if name else ""


def stack_line(stack: StackInUse) -> str:
    """Where the stack in use is, its guard, and why that is the answer about it."""
    parts = []
    if stack.rsp is not None:
        where = f"RSP {stack.rsp:#x}"
        if stack.guard is not None and stack.verdict == "guarded":
            where += f", {stack.distance:,} bytes above its guard ({stack.guard.kind.value} below {stack.guard.top:#x})"
        parts.append(where)
    if stack.verdict != "guarded" or not stack.distance:
        parts.append(stack.reason)
    if stack.beyond:
        parts.append(stack.beyond)
    return "; ".join(parts)


def _variants(scenario: Scenario, all_steps: bool) -> Iterator[str]:
    """A line for all variants that end alike; with `all_steps` one for each of a few."""
    if len(scenario.variants) > 8:
        counts: dict[str, int] = {}
        for variant in scenario.variants:
            counts[variant.verdict] = counts.get(variant.verdict, 0) + 1
        totals = ", ".join(f"{count} {name}" for name, count in counts.items())
        yield f"    {len(scenario.variants)} variants: {totals}"
        for name in [name for name in counts if name != SURVIVES]:
            first = next(variant for variant in scenario.variants if variant.verdict == name)
            if first is scenario.worst:
                continue
            yield from wrap(f"      {first.name}: {first.reason}", "        ")
        return
    alike: dict[tuple[str, str], list[Variant]] = {}
    for variant in scenario.variants:
        alike.setdefault((variant.verdict, variant.reason), []).append(variant)
    if all_steps:
        alike = {(variant.name, ""): [variant] for variant in scenario.variants}
    elif list(alike) == [(scenario.verdict, scenario.reason)]:
        return
    for variants in alike.values():
        if scenario.worst in variants and not all_steps:  # the scenario's own line tells it
            continue
        first, names = variants[0], "; ".join(variant.name for variant in variants)
        yield from wrap(f"    {names}: {coloured(first.verdict)}: {first.reason}", "      ")
        if first.simulation is not None and first.simulation.loop is not None:
            yield f"      {loop(first.simulation.loop)}"


def _interrupt_stack(stack: InterruptStack) -> str:
    names = users(stack)
    return f"{stack.pointer.name}  {stack.pointer.top:#018x}  {depth(stack.extent)}  ({names or 'no gate'})"


def users(stack: InterruptStack) -> str:
    """`#DF, NMI`: the vectors that switch to a stack; "" when no gate names it."""
    vectors = stack.pointer.vectors
    return ", ".join(map(label, vectors[:4])) + (", ..." if len(vectors) > 4 else "")


def depth(extent: Extent) -> str:
    """`8,192 bytes, then PTE not present`: the size of a stack, and what ends it."""
    size, below = f"{extent.size:,} bytes", extent.below
    if below is None:
        return f"at least {size}"
    if not extent.known:
        return f"at least {size}, then {below.why}" if extent.size else below.why
    if not extent.size and isinstance(below, Fault) and below.kind is FaultKind.NON_CANONICAL:
        return f"{size}: not canonical"
    return f"{size}, then {below.why}"


def _scenario(scenario: Scenario, symbols: Symbols, all_steps: bool) -> Iterator[str]:
    """The trace of the variant that decided."""
    worst = scenario.worst
    if worst is None or worst.simulation is None:
        return
    yield ""
    alike = sum(variant.verdict == worst.verdict and variant.reason == worst.reason for variant in scenario.variants)
    rest = f" (and {alike - 1} more with the same result)" if alike > 1 else ""
    yield f"  {worst.name}{rest}"
    yield from simulation(worst.simulation, symbols, all_steps)
