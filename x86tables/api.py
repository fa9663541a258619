"""The way in for programs and for every command: `open(path, ...)` gives an Image, `Image.check()` its Assessments.

image = x86tables.open("kernel.core", symbols="kernel.elf")  # a core, an ELF kernel, flat memory, or a TOML file
for cpu in image.check():
    print(cpu.cpu, cpu.verdict, cpu.reason, [finding.rule for finding in cpu.findings])
"""

from __future__ import annotations

from .errors import NotThere, UsageError
from .machine.image import OpenOptions, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .assessment import Assessment
    from .config import CompiledTables, Config
    from .config.compiled import Lookup
    from .delivery.events import Delivery, Event
    from .delivery.scenarios import ScenarioOptions
    from .delivery.simulate import Simulation
    from .machine.machine import Machine
    from .machine.memory import Memory
    from .machine.registers import Registers
    from .machine.symbols import Symbols
    from .prove.run import Proof


class Image:
    """A file opened: one Machine per CPU, names for addresses, and what can be asked of them.

    `tables` are those that a configuration declares, with `find` where its symbols are; None for any other file.
    """

    def __init__(self, snapshot: Snapshot, tables: CompiledTables | None = None, find: Lookup | None = None) -> None:
        self.snapshot, self.tables, self.find = snapshot, tables, find

    @property
    def path(self) -> str:
        """The file's name."""
        return self.snapshot.path

    @property
    def format(self) -> str:
        """`elfcore`, `elf`, `kdump`, `lime`, `migration`, `vmware`, `crashdump`, `raw` or `config`."""
        return self.snapshot.format

    @property
    def machines(self) -> tuple[Machine, ...]:
        """One for each CPU."""
        return self.snapshot.machines

    @property
    def symbols(self) -> Symbols:
        """Names for addresses; false when there are none."""
        return self.snapshot.symbols

    @property
    def remarks(self) -> tuple[str, ...]:
        """Assumptions, and what the image does not hold."""
        return self.snapshot.remarks

    def cpu(self, number: int) -> Machine:
        """The Machine of a CPU; UsageError when there is none of this number."""
        if not 0 <= number < len(self.machines):
            raise UsageError(f"--cpu {number}: {self.path} has CPUs 0..{len(self.machines) - 1}")
        return self.machines[number]

    def check(
        self,
        scenarios: Iterable[str] = (),
        *,
        rules: Iterable[str] | None = None,
        ignore: Iterable[str] | None = None,
        baseline: str | None = None,
        profile: str | None = None,
        cpus: Sequence[Machine] | None = None,
        options: ScenarioOptions | None = None,
    ) -> list[Assessment]:
        """The assessment of each CPU, or of those in `cpus`; the arguments are those of `assessments`."""
        return list(
            self.assessments(
                scenarios, rules=rules, ignore=ignore, baseline=baseline, profile=profile, cpus=cpus, options=options
            )
        )

    def assessments(
        self,
        scenarios: Iterable[str] = (),
        *,
        rules: Iterable[str] | None = None,
        ignore: Iterable[str] | None = None,
        baseline: str | None = None,
        profile: str | None = None,
        cpus: Sequence[Machine] | None = None,
        options: ScenarioOptions | None = None,
    ) -> Iterator[Assessment]:
        """The assessments one at a time: of a thousand CPUs only the one at hand is kept.

        `scenarios` are names (`current-stack`, ...) or `all`; `stack-overflow` is always one of them. `rules` and
        `ignore` choose rules by prefix (`IDT`, `STK002`); without them a configuration's own choice counts, else every
        rule is run. `baseline` is the JSON of an earlier check, whose findings are accepted. `profile`
        (`vmx-root`) adds rules for what the CPUs are to do. UsageError for an unknown name.
        """
        from . import checks
        from .assessment import assess, scenario_names
        from .checks import selection
        from .delivery.occupants import Occupants

        machines = list(self.machines if cpus is None else cpus)
        own = None if self.tables is None else self.tables.config.check
        if rules is None:
            rules = own.select if own is not None else ()
        if ignore is None:
            ignore = own.ignore if own is not None else ()
        occupants = Occupants(self.machines)
        reports = checks.judge(self.snapshot, machines, selection.select(rules, ignore, profile), occupants=occupants)
        if baseline is not None:
            reports = selection.without(reports, selection.read_baseline(baseline))
        names = scenario_names(scenarios)
        return (assess(report, names, options, occupants) for report in reports)

    def deliver(self, event: Event, cpu: int = 0, registers: Registers | None = None) -> Delivery:
        """One delivery on a CPU, from its registers or from others; the first of a simulation."""
        from .delivery.deliver import deliver
        from .delivery.state import CpuState

        return deliver(CpuState(self.cpu(cpu), registers), event)

    def simulate(
        self, event: Event, cpu: int = 0, registers: Registers | None = None, handler_stack: int | None = None
    ) -> Simulation:
        """A delivery and what follows, until a handler runs, the CPU shuts down, or it loops.

        A handler runs when it can push `handler_stack` bytes, 128 if none are given.
        """
        from .delivery.simulate import HANDLER_STACK, simulate
        from .delivery.state import CpuState

        return simulate(
            CpuState(self.cpu(cpu), registers), event, HANDLER_STACK if handler_stack is None else handler_stack
        )

    def touch(self) -> None:
        """Read all the memory that dump and check read, whatever scenario is asked for."""
        from .delivery.extent import extent
        from .delivery.occupants import Occupants, tss_stacks
        from .delivery.stacks import guard_size

        occupants = Occupants(self.machines)
        for machine in self.machines:
            for name in ("gdt", "idt", "tss", "ldt"):
                machine.table(name)
            for stack in tss_stacks(machine):
                if stack.top:
                    extent(machine, stack.top, occupants=occupants)
            try:
                for gate in machine.gates:
                    if gate.kind == "task-gate":
                        machine.task(gate.selector)
                _ = machine.io_map
            except NotThere:
                pass
        for cpu in self.assessments(["all"]):
            if cpu.stack.guard is not None:
                guard_size(cpu.machine, cpu.stack.guard)  # for `check --frame`

    def kept(self) -> Image:
        """The same with no more memory than was read so far: of a running machine, which goes on."""
        from .machine.memory import Memory

        memory = Memory(self.snapshot.memory.read_pages())
        memory.ram = self.snapshot.memory.ram
        machines = tuple(machine.replace(memory=memory, assumed=machine.assumed) for machine in self.machines)
        return Image(self.snapshot.replace(memory=memory, machines=machines), self.tables, self.find)

    def problems(self) -> list[str]:
        """What a configuration says against itself, a sentence each: stacks that end in a neighbour without a guard."""
        if self.tables is None or self.find is None:
            return []
        from .config.validate import problems

        return list(problems(self.tables, self.find))

    def emit(self, language: str) -> dict[str, bytes]:
        """File name -> contents of a configuration's tables as `bin`, `c`, `gas`, ...; NotThere for an address that is
        not known, UsageError for an unknown language, or an image that is not a configuration."""
        if self.tables is None or self.find is None:
            raise UsageError(f"{self.path}: not a configuration: there is nothing to emit")
        from .emit import emit

        return emit(language, self.tables, self.find)

    def prove(
        self,
        on: str = "bochs",
        scenarios: Iterable[str] = (),
        cpus: Sequence[Machine] | None = None,
        options: ScenarioOptions | None = None,
    ) -> list[Proof]:
        """Run each CPU's scenarios on an independent CPU model, and compare with the prediction.

        UsageError for a model other than `bochs`, which needs the extra of that name; `x86tables prove` runs QEMU.
        """
        if on != "bochs":
            raise UsageError(f"{on!r}: bochs is the model that runs a machine as it was captured")
        from .assessment import scenario_names
        from .delivery.scenarios import ScenarioOptions, Situation
        from .prove import bochs
        from .prove.run import prove

        options, proofs = options or ScenarioOptions(), []
        for machine in self.machines if cpus is None else cpus:
            situation = Situation(machine, options)
            run = [situation.run(name) for name in scenario_names(scenarios)]
            proofs.append(prove(machine, run, options, bochs.run))
        return proofs


def refusals(image: Image, assessments: Iterable[Assessment]) -> list[str]:
    """Why tables are not written: a problem of the configuration, a verdict or a finding each. An unknown verdict does
    not refuse: it depends on memory that was not declared."""
    from .delivery.simulate import LOOPS, TRIPLE_FAULT

    reasons = image.problems()
    for assessment in assessments:
        if assessment.verdict in (TRIPLE_FAULT, LOOPS):
            reasons.append(f"CPU {assessment.cpu} does not survive a stack overflow ({assessment.verdict})")
        reasons += [f"{finding.rule} is an error" for finding in assessment.findings if finding.severity == "error"]
    return list(dict.fromkeys(reasons))


def open(
    path: str,
    *,
    symbols: str | None = None,
    registers: str | Sequence[Registers] | None = None,
    reg: Mapping[str, int] | None = None,
    gdt: str | None = None,
    idt: str | None = None,
    tss: str | None = None,
    cr3: int | None = None,
    base: int | None = None,
    map: Iterable[tuple[str, int]] = (),
    format: str | None = None,
    vendor: str | None = None,
    maxphyaddr: int | None = None,
    kaslr_offset: int | None = None,
    wrap: Callable[[Memory], Memory] | None = None,
    progress: Callable[[int], Callable[[int], object]] | None = None,
) -> Image:
    """Open an ELF core, a linked ELF kernel, flat memory, or a configuration (`*.toml`); or a running machine, by
    `qmp:SOCKET`, `qmp:HOST:PORT` or `gdb:HOST:PORT`: it is stopped while the pages that dump and check need are read,
    and goes on.

    `symbols` is an ELF file or a System.map, `registers` a file with the text of QEMU's `info registers -a`, or the
    registers of each CPU, `reg` single registers by name. `gdt`, `idt` and `tss` are `ADDR[,LIMIT]`: 0x..., decimal, a
    symbol, or `phys:` and one of these. `map` lays files over physical memory, `base` is where flat memory begins,
    `wrap` stands between the image and its memory. Where tables have to be searched for, `progress` is called with
    the number of bytes, and what it returns with those of each step. ImageError says in a sentence what cannot be
    read, UsageError which option is wrong.
    """
    if path.endswith(".toml"):
        if wrap is not None:
            raise UsageError(f"{path}: a configuration holds no memory pages: an image expected")
        given = {"gdt": gdt, "idt": idt, "tss": tss, "base": base, "map": tuple(map), "image_format": format}
        given |= {"registers": bool(registers), "cr3": cr3, "kaslr_offset": kaslr_offset}
        for name, value in given.items():
            if value:
                raise UsageError(f"--{name.replace('_', '-')} is for images; {path} declares it itself")
        return open_config(path, symbols)
    from .readers import open_image, read_registers

    changes = dict(reg or {}) | ({} if cr3 is None else {"cr3": cr3})
    options = OpenOptions(
        format=format,
        base=base,
        gdt=gdt,
        idt=idt,
        tss=tss,
        registers=read_registers(registers) if isinstance(registers, str) else tuple(registers or ()),
        changes=changes,
        maps=tuple(map),
        vendor=vendor,
        maxphyaddr=maxphyaddr,
        symbols=symbols,
        kaslr_offset=kaslr_offset,
        memory=wrap,
        progress=progress,
    )
    if ":" in path:
        from . import live

        if live.named(path):
            return _open_running(path, options)
    return Image(open_image(path, options))


def _open_running(path: str, options: OpenOptions) -> Image:
    """A running machine, with the pages that dump and check need."""
    from . import live
    from .readers import open_image

    if options.memory is not None or options.maps or options.base is not None:
        raise UsageError(f"{path}: --map, --base and extract are for files; `x86tables capture` writes one")
    with live.connected(path) as contents:
        image = Image(open_image(live.label(path), options, (contents, path[:3])))
        image.touch()
        return image.kept()


def open_config(source: str | Config, kernel: str | None = None) -> Image:
    """A configuration, in a file of any name or written in Python, as the machines that it declares.

    Addresses are those of `kernel` (a linked ELF file, whose segments count too, or a System.map), else its own.
    """
    from .config import compile, image, load, resolve

    tables = load(source) if isinstance(source, str) else compile(source)
    find, segments = resolve(tables, kernel)
    return Image(image(tables, find, segments), tables, find)
