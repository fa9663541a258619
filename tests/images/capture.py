"""Capture the test systems again, with QEMU and nothing but Debian's packages.

    python tests/images/capture.py SYSTEM -o DIR [--packages DIR] [--log FILE]

captures one system into DIR, and lets shrink.py put small images of it and the facts beside this script, where the
tests read them. SYSTEM is one of

    ovmf      the UEFI shell of the ovmf package (64-bit, one CPU, no TSS)
    linux     linux-image-amd64, two CPUs: CPU 1 caught in a user program, on the user page tables of page-table
              isolation, CPU 0 idle in the kernel; KASLR is on
    linux32   linux-image-686-pae, the same in 32 bits
    cloud     linux-image-cloud-amd64 on AMD's CPUs, one set of page tables: CPU 1 caught in a system call
    xen       xen-hypervisor-amd64, two CPUs: CPU 0 in a program of its dom0, CPU 1 idle
    memtest   memtest86+ at its first test (64-bit, two CPUs, no TSS)
    seabios   SeaBIOS when it has found nothing to boot (real mode)
    grub      GRUB at its rescue prompt (32-bit protected mode, no paging)
    rust      a kernel as the tutorial "Writing an OS in Rust" has it after its chapter on double faults, idle: GDT, TSS
              and IDT are those that the crate x86_64 0.15.4 makes. The kernel is expected as rust.elf in --packages

Needed on Debian 12: qemu-system-x86 ovmf seabios grub-pc-bin grub-common busybox-static cpio binutils, and qemu.qmp
from PyPI. Everything else is downloaded into --packages and unpacked there, never installed. QEMU interprets (-accel
tcg), so no KVM is needed; a boot takes up to a minute. The machine stays stopped while everything is written, and so
all files of one capture agree:

    NAME.core         dump-guest-memory: physical memory and the registers
    NAME-paging.core  dump-guest-memory -p (64-bit systems)
    NAME.json         what QEMU's monitor says of that machine: the expected facts ("??": a byte that cannot be read)
    NAME.tlb.xz       `info tlb` of every CPU, one after the other (64-bit systems)
    NAME.map          symbols at their run-time addresses (linux, cloud, xen)
    NAME-gdt.bin ...  the pages of one table (ovmf); "flat" in NAME.json says where they lie
"""

import argparse
import asyncio
import json
import lzma
import tempfile
from collections.abc import Iterable
from pathlib import Path

from monitor import Monitor
from shrink import HERE, shrink
from systems import PAGE, SYSTEMS, System, command, installed

# The monitor's name for each table; at most so many bytes of it are kept.
TABLES = {"gdt": ("GDT", 0x10000), "idt": ("IDT", 0x1000), "tss": ("TR", 0x4100), "ldt": ("LDT", 0x1000)}
DEEPEST = 32  # pages looked at below a stack's top when no guard page comes
# Asked of every CPU: low memory, devices, both halves of the address space, vsyscall, last page.
EVERYWHERE = """0 1000 b8000 200000 8048000 40000000 80000000 c0000000 c1000000 fee00000 fffc0000 100000000 1c0000000
    8000000000 10000000000 7ffffffff000 800000000000 ffff800000000000 ffffffffff600000 fffffffffffff000"""


def pages(base: int, size: int) -> list[int]:
    return list(range(base & -PAGE, base + size, PAGE))


def handlers(idt: bytes, long: bool) -> Iterable[int]:
    """Where the interrupt and trap gates lead, those that are present."""
    for at in range(0, len(idt) - 7, 16 if long else 8):
        if idt[at + 5] & 0x87 in (0x86, 0x87):
            high = idt[at + 6 : at + (12 if long else 8)]
            yield int.from_bytes(idt[at : at + 2] + high, "little")


def stack_tops(tss: bytes, long: bool) -> set[int]:
    """RSP0 and IST1 to IST7, or ESP0; those that are set."""
    places, width = ([4, *range(36, 92, 8)], 8) if long else ([4], 4)
    return {int.from_bytes(tss[at : at + width], "little") for at in places} - {0}


async def facts(monitor: Monitor, cpus: int, spread: Iterable[int]) -> list[dict[str, object]]:
    """All that the monitor says of every CPU; each is asked for what any of them uses."""
    found: list[dict[str, object]] = []
    wanted, tops = {*spread, *(int(a, 16) for a in EVERYWHERE.split())}, set[int]()
    for cpu in range(cpus):
        registers, raw = await monitor.registers(cpu), dict[str, bytes]()
        one: dict[str, object] = {"cpu": cpu, "info_registers": registers.text}
        for key, (name, most) in TABLES.items():
            one[key] = None
            if table := registers.table(name):
                base, limit = table
                text = await monitor.hex(base, min(limit + 1, most), cpu)
                raw[key] = bytes.fromhex(text.replace("?", "0"))
                one[key] = {"base": hex(base), "limit": limit, "raw": text}
                wanted.update(pages(base, limit + 1))
        if registers.cr(0) & 1:
            wanted.update(address & -PAGE for address in handlers(raw["idt"], registers.long))
            tops |= stack_tops(raw.get("tss", b""), registers.long)
        else:
            one["ivt"] = {"raw": (await monitor.read(0, 0x400, cpu)).hex()}
        wanted |= {registers.linear(*of) & -PAGE for of in (("CS", "IP"), ("SS", "SP"))}
        found.append(one)
    wanted |= {top & -PAGE for top in tops} | {top - 8 for top in tops}
    for cpu, one in enumerate(found):
        long = (await monitor.registers(cpu)).long
        asked = {a: await monitor.physical(a, cpu) for a in wanted if long or a < 1 << 32}
        for top in tops:
            for page in reversed(pages(top - DEEPEST * PAGE, DEEPEST * PAGE)):
                asked[page] = await monitor.physical(page, cpu)
                if asked[page] is None:
                    break  # the guard page
        one["gva2gpa"] = {hex(a): p if p is None else hex(p) for a, p in sorted(asked.items())}
    return found


async def flat(monitor: Monitor, output: Path, name: str) -> list[dict[str, object]]:
    """The pages of GDT and IDT, each table in a file of its own."""
    found: list[dict[str, object]] = []
    for key in ("gdt", "idt"):
        base, limit = (await monitor.registers()).table(key.upper()) or (0, 0)
        run = pages(base, limit + 1)
        if [await monitor.physical(page) for page in run] != run:
            raise SystemExit(f"the {key} is not mapped one to one")
        file = f"{name}-{key}.bin"
        await monitor.execute("pmemsave", {"val": run[0], "size": len(run) * PAGE, "filename": str(output / file)})
        options = ["--base", hex(run[0]), f"--{key}", f"{base:#x},{limit:#x}"]
        found.append({"file": file, "address": hex(run[0]), "options": options})
    return found


async def symbols(monitor: Monitor, work: Path, file: Path) -> list[int]:
    """Write the system's symbols as a System.map; return addresses in all sorts of Linux's mappings."""
    if not (work / "symbols").exists():
        return []
    lines = sorted(line for line in (work / "symbols").read_text().splitlines() if line.count(" ") == 2)
    file.write_text("\n".join(lines) + "\n")
    at = {name: int(address, 16) for address, _, name in map(str.split, lines)}
    spread = [at[name] & -PAGE for name in at if name.startswith("_") or name == "init_task"]
    for base in {"page_offset_base", "vmalloc_base", "vmemmap_base"} & at.keys():
        start = int.from_bytes(await monitor.read(at[base], 8), "little")
        spread += [start, start + 0x1234000, start + 0x5678000, start + 0x40000000]
    return spread


async def capture(name: str, output: Path, packages: Path, log: Path | None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        system = SYSTEMS[name](work, packages)
        argv = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", "-qmp", "unix:qmp"]
        argv += system.arguments
        if log is not None:
            argv += ["-d", "int,cpu_reset", "-D", str(log.absolute())]
        version = command("qemu-system-x86_64", "--version").splitlines()[0]
        versions = installed("qemu-system-x86") | system.packages
        monitor = Monitor(name, readbuflen=1 << 28)
        await monitor.start_server(str(work / "qmp"))
        qemu = await asyncio.create_subprocess_exec(*argv, cwd=work)
        try:
            await asyncio.wait_for(monitor.accept(), 30)
            await asyncio.wait_for(stop(monitor, system, work), 900)
            spread = await symbols(monitor, work, output / f"{name}.map")
            spread += [int(place, 16) for place in system.places.split()]
            told = [part.removeprefix(f"{packages}/") for part in argv]
            document: dict[str, object] = {"captured": {"qemu": version, "packages": versions, "command": told}}
            document["cpus"] = await facts(monitor, system.cpus, spread)
            if name == "ovmf":
                document["flat"] = await flat(monitor, output, name)
            (output / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
            await dump(monitor, system, output, name)
            await monitor.disconnect()
        finally:
            qemu.kill()
            await qemu.wait()


async def stop(monitor: Monitor, system: System, work: Path) -> None:
    """Wait until the system is up, then stop it in a moment that suits."""
    file, word = system.ready
    while not (work / file).exists() or word not in (work / file).read_bytes():
        await asyncio.sleep(0.5)
    await asyncio.sleep(3)  # let it settle
    await monitor.execute("stop")
    while not system.caught([await monitor.registers(cpu) for cpu in range(system.cpus)]):
        await monitor.execute("cont")
        await asyncio.sleep(0.037)
        await monitor.execute("stop")


async def dump(monitor: Monitor, system: System, output: Path, name: str) -> None:
    for paging in (False, True)[: 1 + system.long]:
        core = output / f"{name}{'-paging' * paging}.core"
        core.unlink(missing_ok=True)
        await monitor.execute("dump-guest-memory", {"paging": paging, "protocol": f"file:{core}"})
        core.chmod(0o644)
    if system.long:
        texts = [await monitor.text("info tlb", cpu) for cpu in range(system.cpus)]
        text = "".join(f"# CPU {cpu}\n{text}" for cpu, text in enumerate(texts))
        (output / f"{name}.tlb.xz").write_bytes(lzma.compress(text.encode(), preset=9))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="where .debs are kept")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write QEMU's -d int,cpu_reset")
    given = parser.parse_args()
    output: Path = given.output.absolute()
    if output == HERE:
        parser.error("-o: the cores are big; the small images go beside this script by themselves")
    packages: Path = (given.packages or output / "packages").absolute()
    for directory in (output, packages):
        directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(capture(given.system, output, packages, given.log))
    shrink(output, given.system)


if __name__ == "__main__":
    main()
