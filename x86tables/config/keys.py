"""What a configuration may say: the keys of the TOML file, and the same as Python objects."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

Address = Annotated[
    int | str,
    Meta(description='A symbol, also with an offset ("stack_end - 16"), or a number, also as text ("0x100000").'),
]


class Keys(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Base of all tables of the file. `shape` is what a mistake says was expected."""

    shape: ClassVar[str] = "a table"


class Strided(Keys, kw_only=True, frozen=True):
    """One behind the other: that of the first vector of a range, or of the first CPU of a `count`, at `base`, the next
    `stride` bytes on."""

    shape: ClassVar[str] = "a symbol, an address, or {base = SYMBOL, stride = N}"
    base: Address
    stride: Annotated[int, Meta(ge=1)]


CpuAddress = Annotated[
    int | str | Strided, Meta(description="An address; `{cpu}` in it is the number of the CPU. Or {base, stride}.")
]
Size = Annotated[int | str, Meta(description='Bytes: a number, or text with a unit ("20 KiB", "1 MiB").')]
Kind = Literal["null", "kernel_code", "kernel_data", "user_code", "user_data", "code32", "user_code32", "tss"]
Bit = Annotated[bool, Meta(description="A bit of the descriptor, by the manual's letter.")]


class SegmentConfig(Keys, kw_only=True, frozen=True):
    """A segment by intention, raw fields laid over it; without `kind`, by raw fields alone."""

    shape: ClassVar[str] = "a kind of segment, or a table {name = ..., kind = ...} with raw fields"
    name: Annotated[str | None, Meta(description="What gates and constants call it (default: its kind).")] = None
    kind: Kind | None = None
    base: Annotated[int, Meta(ge=0)] | None = None
    limit: Annotated[int, Meta(ge=0, le=0xFFFFF, description="Raw: pages of 4 KiB with g.")] | None = None
    g: Bit | None = None
    d_b: Bit | None = None
    l: Bit | None = None  # noqa: E741 - the manual's letter
    avl: Bit | None = None
    p: Bit | None = None
    dpl: Annotated[int, Meta(ge=0, le=3)] | None = None
    s: Bit | None = None
    type: Annotated[int, Meta(ge=0, le=15)] | None = None


class GdtConfig(Keys, kw_only=True, frozen=True):
    """The segments in the order of the table, behind the null slot."""

    segments: Annotated[
        list[Kind | SegmentConfig],
        Meta(description='"tss" is where the TSS descriptors go, one per CPU, 16 bytes each (default: at the end).'),
    ] = field(default_factory=lambda: ["kernel_code", "kernel_data", "tss"])


class StackConfig(Keys, kw_only=True, frozen=True):
    """A stack: {bottom, size} or {top}. A symbol alone would not say which end it is.

    Of many CPUs, its symbol has `{cpu}` in it, or the stacks lie one behind the other: {base = SYMBOL, stride = N}.
    """

    shape: ClassVar[str] = "{bottom = SYMBOL, size = N} or {top = SYMBOL}: a symbol alone does not say which end it is"
    bottom: CpuAddress | None = None
    size: Size | None = None
    top: CpuAddress | None = None
    name: Annotated[str | None, Meta(description="What gates call it (default: its slot, `ist1`).")] = None
    guard: Annotated[
        int | str | None,
        Meta(description="Size of the guard below `bottom`, which the boot code must leave unmapped."),
    ] = None


class CpuConfig(Keys, kw_only=True, frozen=True):
    """One CPU: its TSS, and the stack that the kernel runs on (default: that of RSP0)."""

    count: Annotated[int, Meta(ge=1, description="How many CPUs this declares, all alike.")] = 1
    tss: Annotated[
        Address | None,
        Meta(description='Where the TSS is; `{cpu}` in it is the number (default: symbol "tss", or "tss0", ...).'),
    ] = None
    stack: StackConfig | None = None
    rsp0: StackConfig | None = None
    rsp1: StackConfig | None = None
    rsp2: StackConfig | None = None
    ist1: StackConfig | None = None
    ist2: StackConfig | None = None
    ist3: StackConfig | None = None
    ist4: StackConfig | None = None
    ist5: StackConfig | None = None
    ist6: StackConfig | None = None
    ist7: StackConfig | None = None


class GateConfig(Keys, kw_only=True, frozen=True):
    """The gate of a vector, or the gates of a range."""

    shape: ClassVar[str] = "a handler, or a table {handler = ..., ist = ...}"
    handler: Annotated[
        int | str | Strided,
        Meta(description="A symbol (`{vector}` in it is the number), an address, or {base = SYMBOL, stride = N}."),
    ]
    type: Literal["interrupt", "trap"] = "interrupt"
    ist: Annotated[str | None, Meta(description="The name of a stack of the TSS; without it, no switch.")] = None
    dpl: Annotated[int, Meta(ge=0, le=3, description="Who may reach it by INT n (default: 0).")] | None = None
    segment: Annotated[str | None, Meta(description="The code segment (default: the first kernel_code).")] = None
    stub: Annotated[bool, Meta(description="Whether `stubs` writes an entry stub under the handler's name.")] = True


class SyscallConfig(Keys, kw_only=True, frozen=True):
    """What SYSCALL and SYSRET load, and the vectors that programs may call."""

    kernel: Annotated[str | None, Meta(description="The segment that SYSCALL loads into CS; SS is the next.")] = None
    user: Annotated[str | None, Meta(description="The 64-bit segment of SYSRET's CS; SS is the one before.")] = None
    vectors: Annotated[list[int | str], Meta(description="System-call vectors: their gates have DPL 3.")] = []


class MemoryConfig(Keys, kw_only=True, frozen=True):
    """A region of linear memory that the boot code maps. What is not declared is unknown."""

    name: str = ""
    start: Address
    end: Annotated[Address | None, Meta(description="The first byte behind it; or give `size`.")] = None
    size: Size | None = None
    permissions: Annotated[
        str, Meta(pattern="^r?w?x?u?$", description="Of r, w, x, u (ring 3); none of them makes it a guard.")
    ] = "rw"


class TablesConfig(Keys, kw_only=True, frozen=True):
    """Where the tables are, and what their sources call them."""

    gdt: Address = "gdt"
    idt: Address = "idt"
    gdtr: Address = "gdtr"
    idtr: Address = "idtr"
    gates: Annotated[int, Meta(ge=1, le=256, description="How many gates the IDT has.")] = 256


class StubsConfig(Keys, kw_only=True, frozen=True):
    """The entry stubs and the routine that loads the tables."""

    common: Annotated[str, Meta(description="Where every stub jumps to, vector and error code pushed.")] = (
        "interrupt_common"
    )
    load: Annotated[str, Meta(description="Name of the routine that loads the tables.")] = "load_tables"


class MachineConfig(Keys, kw_only=True, frozen=True):
    """The processor that the boot code sets up, for the checks."""

    vendor: Literal["intel", "amd"] = "intel"
    la57: Annotated[bool, Meta(description="Page tables of five levels.")] = False
    smep: bool = False
    smap: bool = False


class CheckConfig(Keys, kw_only=True, frozen=True):
    """Which rules are run, as the options of `x86tables check`."""

    select: Annotated[list[str], Meta(description="Only these rules, by the beginning of their identifier.")] = []
    ignore: Annotated[list[str], Meta(description="Not these rules.")] = []


class Config(Keys, kw_only=True, frozen=True):
    """The tables of a kernel: GDT, one TSS per CPU, IDT, and the memory that they need."""

    gdt: GdtConfig = GdtConfig()
    cpu: Annotated[CpuConfig | list[CpuConfig], Meta(description="One table, or one per CPU ([[cpu]]).")] = CpuConfig()
    idt: Annotated[
        dict[str, int | str | GateConfig],
        Meta(description='Gates by vector ("8"), mnemonic ("#DF") or range ("32..47"); one vector overrides a range.'),
    ] = {}
    syscall: SyscallConfig | None = None
    memory: list[MemoryConfig] = []
    symbols: Annotated[dict[str, Address], Meta(description="Addresses of symbols, where no ELF file has them.")] = {}
    tables: TablesConfig = TablesConfig()
    stubs: StubsConfig = StubsConfig()
    machine: MachineConfig = MachineConfig()
    check: CheckConfig = CheckConfig()
