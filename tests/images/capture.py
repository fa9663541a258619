"""Capture the test systems again, with QEMU and nothing but Debian's packages.

    python tests/images/capture.py SYSTEM -o DIR [--packages DIR] [--log FILE]

captures one system into DIR, and lets shrink.py put small images of it and the facts beside this script, where the
tests read them. SYSTEM is one of

    ovmf      the UEFI shell of the ovmf package (64-bit, one CPU, no TSS)
    linux     linux-image-amd64, two CPUs: CPU 1 caught in a user program, on the user page tables of page-table
              isolation, CPU 0 idle in the kernel; KASLR is on
    linux32   linux-image-686-pae, the same in 32 bits
    seabios   SeaBIOS when it has found nothing to boot (real mode)
    grub      GRUB at its rescue prompt (32-bit protected mode, no paging)

Needed on Debian 12: qemu-system-x86 ovmf seabios grub-pc-bin grub-common busybox-static cpio binutils, and qemu.qmp
from PyPI. Kernels are downloaded into --packages and unpacked there, never installed. QEMU interprets (-accel tcg),
so no KVM is needed; a boot takes up to a minute. The machine stays stopped while everything is written, and so all
files of one capture agree:

    NAME.core         dump-guest-memory: physical memory and the registers
    NAME-paging.core  dump-guest-memory -p (ovmf, linux)
    NAME.json         what QEMU's monitor says of that machine: the expected facts
    NAME.tlb.xz       `info tlb` of every CPU, one after the other (ovmf, linux)
    NAME.map          symbols at their run-time addresses (linux)
    NAME-gdt.bin ...  the pages of one table (ovmf); "flat" in NAME.json says where they lie
"""

import argparse
import asyncio
import json
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import QMPClient
from shrink import HERE, shrink

GUESTS = HERE / "guests"  # the first programs of our guests
PAGE = 0x1000
# The monitor's name for each table; at most so many bytes of it are kept.
TABLES = {"gdt": ("GDT", 0x1000), "idt": ("IDT", 0x1000), "tss": ("TR", 0x4100), "ldt": ("LDT", 0x1000)}
DEEPEST = 32  # pages looked at below a stack's top when no guard page comes
# Asked of every CPU: low memory, devices, both halves of the address space, vsyscall, last page.
EVERYWHERE = """0 1000 b8000 200000 8048000 40000000 80000000 c0000000 c1000000 fee00000 fffc0000 100000000 1c0000000
    8000000000 10000000000 7ffffffff000 800000000000 ffff800000000000 ffffffffff600000 fffffffffffff000"""
LINUX = ["-cpu", "Skylake-Client-v1", "-smp", "2", "-m", "128", "-vga", "none", "-kernel", "vmlinuz",
         "-initrd", "initrd", "-append", "console=ttyS0 pti=on", "-serial", "file:console"]  # fmt: skip


@dataclass(frozen=True)
class Registers:
    """The text of `info registers` for one CPU, and the numbers in it."""

    text: str

    def number(self, pattern: str) -> int:
        match = re.search(pattern, self.text)
        if match is None:
            raise SystemExit(f"info registers: no {pattern} in\n{self.text}")
        return int(match[1], 16)

    def table(self, name: str) -> tuple[int, int] | None:
        """Base and limit of GDT, IDT, TR or LDT; None for a selector that is null."""
        if name in ("TR", "LDT") and self.number(rf"{name} *=(\w+)") == 0:
            return None
        before = rf"{name} *=(?: +|\w+ )"
        return self.number(rf"{before}(\w+)"), self.number(rf"{before}\w+ (\w+)")

    def cr(self, n: int) -> int:
        return self.number(rf"CR{n}=(\w+)")

    @property
    def long(self) -> bool:
        return bool(self.number(r"EFER=(\w+)") & 1 << 10)

    def linear(self, segment: str, pointer: str) -> int:
        base = 0 if self.long else self.number(rf"{segment} *=\w+ (\w+)")
        return base + self.number(rf"[RE]{pointer}=(\w+)")


class Monitor(QMPClient):
    """QEMU's monitor for machines, and through it the one for people."""

    async def text(self, line: str, cpu: int = 0) -> str:
        answer = await self.execute("human-monitor-command", {"command-line": line, "cpu-index": cpu})
        return str(answer).replace("\r", "")

    async def registers(self, cpu: int = 0) -> Registers:
        return Registers(await self.text("info registers", cpu))

    async def read(self, address: int, size: int, cpu: int = 0) -> bytes:
        """Linear memory, as far as it can be read."""
        text = await self.text(f"x /{size}xb {address:#x}", cpu)
        return bytes(int(byte, 16) for byte in re.findall(r" 0x(\w\w)", text))

    async def physical(self, address: int, cpu: int = 0) -> int | None:
        answer = (await self.text(f"gva2gpa {address:#x}", cpu)).strip()
        return None if answer == "Unmapped" else int(answer.removeprefix("gpa: "), 16)


@dataclass
class System:
    """How to start one system, and how to know that it is where we want it."""

    arguments: list[str]
    packages: dict[str, str]
    ready: tuple[str, bytes]  # file in the working directory, word to wait for
    cpus: int = 1
    long: bool = False
    caught: Callable[[list[Registers]], bool] = lambda cpus: True


def command(*argv: str | Path, cwd: Path | None = None, check: bool = True) -> str:
    return subprocess.run(argv, cwd=cwd, check=check, stdout=subprocess.PIPE, text=True).stdout


def installed(*names: str) -> dict[str, str]:
    return {name: command("dpkg-query", "-W", "-f", "${Version}", name) for name in names}


def kernel(work: Path, packages: Path, meta: str, architecture: str) -> dict[str, str]:
    """Put Debian's current kernel into `work` as vmlinuz; return its package's version."""
    state = packages / f"apt-{architecture}"  # lists of our own: the machine's APT stays as it is
    for place in ("lists/partial", "archives/partial"):
        (state / place).mkdir(parents=True, exist_ok=True)
    options = [f"-oDir::State={state}", f"-oDir::Cache={state}", "-oDir::State::status=/dev/null",
               f"-oAPT::Architecture={architecture}", f"-oAPT::Architectures={architecture}"]  # fmt: skip
    command("apt-get", *options, "update", check=False)  # one list of several may fail
    depends = re.search(r"Depends: (\S+)", command("apt-cache", *options, "depends", meta))
    if depends is None:
        raise SystemExit(f"{meta}: APT knows no such package for {architecture}")
    name = depends[1]
    if not list(packages.glob(f"{name}_*.deb")):
        command("apt-get", *options, "download", name, cwd=packages)
    deb = max(packages.glob(f"{name}_*.deb"))
    command("dpkg-deb", "-x", deb, packages / name)
    shutil.copy(next((packages / name / "boot").glob("vmlinuz-*")), work / "vmlinuz")
    return {name: command("dpkg-deb", "-f", deb, "Version").strip()}


def initramfs(work: Path, *files: str) -> None:
    cpio = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-O", "initrd"]
    subprocess.run(cpio, cwd=work, check=True, text=True, input="\n".join(files) + "\n")


def in_user_program(cpus: list[Registers]) -> bool:
    """CPU 1 in a program, on the user one of its pair of page-table roots; CPU 0 in the kernel."""
    return [cpu.number(r"CPL=(\d)") for cpu in cpus] == [0, 3] and bool(cpus[1].cr(3) & PAGE)


def ovmf(work: Path, _: Path) -> System:
    shutil.copy("/usr/share/OVMF/OVMF_VARS.fd", work / "vars.fd")
    arguments = ["-machine", "q35", "-cpu", "qemu64,+pdpe1gb", "-m", "128", "-vga", "none", "-serial", "file:console"]
    for flash in ("/usr/share/OVMF/OVMF_CODE.fd,readonly=on", "vars.fd"):
        arguments += ["-drive", f"if=pflash,format=raw,file={flash}"]
    return System(arguments, installed("ovmf"), ("console", b"Shell>"), long=True)


def linux(work: Path, packages: Path) -> System:
    versions = kernel(work, packages, "linux-image-amd64", "amd64")
    shutil.copy("/bin/busybox", work)
    shutil.copy(GUESTS / "linux.sh", work / "init")
    (work / "init").chmod(0o755)
    initramfs(work, "init", "busybox")
    arguments = [*LINUX, "-serial", "file:symbols"]
    versions |= installed("seabios", "busybox-static")
    return System(arguments, versions, ("symbols", b"complete"), 2, True, in_user_program)


def linux32(work: Path, packages: Path) -> System:
    versions = kernel(work, packages, "linux-image-686-pae", "i386") | installed("seabios")
    command("as", "--32", "-o", "init.o", GUESTS / "linux32.s", cwd=work)
    command("ld", "-m", "elf_i386", "-o", "init", "init.o", cwd=work)
    initramfs(work, "init")
    return System(LINUX, versions, ("console", b"complete"), 2, False, in_user_program)


def seabios(_: Path, __: Path) -> System:
    arguments = ["-m", "16", "-vga", "std", "-debugcon", "file:console", "-global", "isa-debugcon.iobase=0x402"]
    return System(arguments, installed("seabios"), ("console", b"No bootable device"))


def grub(work: Path, _: Path) -> System:
    (work / "early.cfg").write_text("serial --unit=0\nterminal_output serial\necho complete\n")
    make = "grub-mkimage -O i386-pc -p /boot/grub -c early.cfg -o core.img serial terminal echo"
    command(*make.split(), cwd=work)
    disk = Path("/usr/lib/grub/i386-pc/boot.img").read_bytes() + (work / "core.img").read_bytes()
    (work / "disk").write_bytes(disk.ljust(1 << 20, b"\0"))
    arguments = ["-m", "16", "-vga", "std", "-drive", "format=raw,file=disk", "-serial", "file:console"]
    versions = installed("seabios", "grub-pc-bin")
    return System(arguments, versions, ("console", b"complete"), caught=lambda cpus: bool(cpus[0].cr(0) & 1))


SYSTEMS = {f.__name__: f for f in (ovmf, linux, linux32, seabios, grub)}


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
                raw[key] = await monitor.read(base, min(limit + 1, most), cpu)
                one[key] = {"base": hex(base), "limit": limit, "raw": raw[key].hex()}
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


async def symbols(monitor: Monitor, work: Path, output: Path) -> list[int]:
    """Write what Linux has sent as a System.map; return addresses in all sorts of mappings."""
    lines = sorted(line for line in (work / "symbols").read_text().splitlines() if line.count(" ") == 2)
    (output / "linux.map").write_text("\n".join(lines) + "\n")
    at = {name: int(address, 16) for address, _, name in map(str.split, lines)}
    spread = [at[name] & -PAGE for name in at if name.startswith("_") or name == "init_task"]
    for base in ("page_offset_base", "vmalloc_base", "vmemmap_base"):
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
            spread = await symbols(monitor, work, output) if name == "linux" else []
            document: dict[str, object] = {"captured": {"qemu": version, "packages": versions, "command": argv}}
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
