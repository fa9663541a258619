"""The test systems: what they are made of, how QEMU starts them, and how to know that they are where we want them."""

import gzip
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monitor import Registers
from shrink import HERE

GUESTS = HERE / "guests"  # the first programs of our guests
PAGE = 0x1000
LINUX = ["-smp", "2", "-m", "128", "-vga", "none", "-kernel", "vmlinuz", "-initrd", "initrd", "-serial", "file:console"]
INTEL = [*LINUX, "-cpu", "Skylake-Client-v1", "-append", "console=ttyS0 pti=on"]
AMD = [*LINUX, "-cpu", "EPYC-v1", "-append", 'console=ttyS0 pti=off load="dd if=/dev/zero of=/dev/null bs=64M"']
# Without SMAP: QEMU 7.2 reads the frame of an IRETQ in ring 3 as the supervisor, and dom0's kernel runs there.
XEN = ["-smp", "2", "-m", "384", "-vga", "none", "-cpu", "Skylake-Client-v1,-smap", "-kernel", "xen",
       "-append", "com1=115200 console=com1 dom0_mem=192M dom0_max_vcpus=1 dom0_vcpus_pin",
       "-initrd", "vmlinuz console=hvc0,initrd", "-serial", "file:console"]  # fmt: skip
# Xen's own memory, and where it lets its guests have theirs: __image_base__ and its friends in config.h.
XEN_PLACES = """ffff800000000000 ffff810000000000 ffff820000000000 ffff820000008000 ffff82000000e000 ffff820040000000
    ffff82c000000000 ffff82d040000000 ffff82d040200000 ffff82d0403fe000 ffff82d040800000 ffff82e000000000
    ffff82e000100000 ffff830000000000 ffff830000100000 ffff830001234000 ffff830017fff000 ffff830018000000
    ffff880000000000 ffff888000000000 ffffffff80000000 ffffffff81000000 ffffffff82a03000"""


@dataclass
class System:
    """How to start one system, and how to know that it is where we want it."""

    arguments: list[str]
    packages: dict[str, str]
    ready: tuple[str, bytes]  # file in the working directory, word to wait for
    cpus: int = 1
    long: bool = False
    caught: Callable[[list[Registers]], bool] = lambda cpus: True
    places: str = ""  # addresses that its CPUs are asked for beside those of their tables


def command(*argv: str | Path, cwd: Path | None = None, check: bool = True) -> str:
    return subprocess.run(argv, cwd=cwd, check=check, stdout=subprocess.PIPE, text=True).stdout


def installed(*names: str) -> dict[str, str]:
    return {name: command("dpkg-query", "-W", "-f", "${Version}", name) for name in names}


def fetched(packages: Path, name: str, architecture: str = "amd64") -> tuple[Path, dict[str, str]]:
    """Debian's package, for a name without a version the one with it: unpacked where, and which version."""
    state = packages / f"apt-{architecture}"  # lists of our own: the machine's APT stays as it is
    for place in ("lists/partial", "archives/partial"):
        (state / place).mkdir(parents=True, exist_ok=True)
    options = [f"-oDir::State={state}", f"-oDir::Cache={state}", "-oDir::State::status=/dev/null",
               f"-oAPT::Architecture={architecture}", f"-oAPT::Architectures={architecture}"]  # fmt: skip
    command("apt-get", *options, "update", check=False)  # one list of several may fail
    current = re.search(r"Depends: (\S+-\d\S+)", command("apt-cache", *options, "depends", name))
    if current and not re.search(r"-\d", name):
        name = current[1]
    if not list(packages.glob(f"{name}_*.deb")):
        command("apt-get", *options, "download", name, cwd=packages)
    deb = max(packages.glob(f"{name}_*.deb"))
    command("dpkg-deb", "-x", deb, packages / name)
    return packages / name, {name: command("dpkg-deb", "-f", deb, "Version").strip()}


def kernel(work: Path, packages: Path, meta: str, architecture: str = "amd64") -> dict[str, str]:
    """Put Debian's current kernel into `work` as vmlinuz; return its package's version."""
    package, version = fetched(packages, meta, architecture)
    shutil.copy(next((package / "boot").glob("vmlinuz-*")), work / "vmlinuz")
    return version


def scripted(work: Path, script: str) -> dict[str, str]:
    """An initramfs of a script and the busybox that runs it; return busybox's version."""
    shutil.copy("/bin/busybox", work)
    shutil.copy(GUESTS / script, work / "init")
    (work / "init").chmod(0o755)
    initramfs(work, "init", "busybox")
    return installed("seabios", "busybox-static")


def initramfs(work: Path, *files: str) -> None:
    cpio = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-O", "initrd"]
    subprocess.run(cpio, cwd=work, check=True, text=True, input="\n".join(files) + "\n")


def in_user_program(cpus: list[Registers]) -> bool:
    """CPU 1 in a program, on the user one of its pair of page-table roots; CPU 0 in the kernel."""
    return [cpu.cpl for cpu in cpus] == [0, 3] and bool(cpus[1].cr(3) & PAGE)


def in_system_call(cpus: list[Registers]) -> bool:
    """CPU 1 at work in the kernel, with user pages open to it (RFLAGS.AC)."""
    return cpus[1].cpl == 0 and bool(cpus[1].number(r"RFL=(\w+)") & 1 << 18)


def in_dom0(cpus: list[Registers]) -> bool:
    """CPU 0 in a program of dom0, CPU 1 in Xen."""
    return [cpu.cpl for cpu in cpus] == [3, 0]


def ovmf(work: Path, _: Path) -> System:
    shutil.copy("/usr/share/OVMF/OVMF_VARS.fd", work / "vars.fd")
    arguments = ["-machine", "q35", "-cpu", "qemu64,+pdpe1gb", "-m", "128", "-vga", "none", "-serial", "file:console"]
    for flash in ("/usr/share/OVMF/OVMF_CODE.fd,readonly=on", "vars.fd"):
        arguments += ["-drive", f"if=pflash,format=raw,file={flash}"]
    return System(arguments, installed("ovmf"), ("console", b"Shell>"), long=True)


def linux(work: Path, packages: Path) -> System:
    versions = kernel(work, packages, "linux-image-amd64") | scripted(work, "linux.sh")
    arguments = [*INTEL, "-serial", "file:symbols"]
    return System(arguments, versions, ("symbols", b"complete"), 2, True, in_user_program)


def cloud(work: Path, packages: Path) -> System:
    versions = kernel(work, packages, "linux-image-cloud-amd64") | scripted(work, "linux.sh")
    arguments = [*AMD, "-serial", "file:symbols"]
    return System(arguments, versions, ("symbols", b"complete"), 2, True, in_system_call)


def xen(work: Path, packages: Path) -> System:
    package, version = fetched(packages, "xen-system-amd64")
    debug, _ = fetched(packages, next(iter(version)) + "-dbg")
    (work / "xen").write_bytes(gzip.decompress(next((package / "boot").glob("xen-*.gz")).read_bytes()))
    lines = next((debug / "usr/lib/debug/boot").glob("xen-syms-*.map")).read_text().splitlines()
    wanted = re.compile(r"ffff82d04020[0-2]... [tT] | (cpu0_stack|default_idle|idle_loop|__image_base__|_[es]text)$")
    (work / "symbols").write_text("\n".join(line.removeprefix("0x") for line in lines if wanted.search(line)))
    versions = version | kernel(work, packages, "linux-image-amd64") | scripted(work, "xen.sh")
    return System(XEN, versions, ("console", b"dom0 is up"), 2, True, in_dom0, XEN_PLACES)


def memtest(_: Path, packages: Path) -> System:
    package, version = fetched(packages, "memtest86+")
    arguments = ["-cpu", "qemu64", "-smp", "2", "-m", "64", "-vga", "std", "-serial", "file:console",
                 "-kernel", str(package / "boot/memtest86+x64.bin"), "-append", "console=ttyS0,115200"]  # fmt: skip
    return System(arguments, version | installed("seabios"), ("console", b"Testing"), 2, True)


def linux32(work: Path, packages: Path) -> System:
    versions = kernel(work, packages, "linux-image-686-pae", "i386") | installed("seabios")
    command("as", "--32", "-o", "init.o", GUESTS / "linux32.s", cwd=work)
    command("ld", "-m", "elf_i386", "-o", "init", "init.o", cwd=work)
    initramfs(work, "init")
    return System(INTEL, versions, ("console", b"complete"), 2, False, in_user_program)


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


def rust(work: Path, packages: Path) -> System:
    """A kernel that somebody has built: its memory is looked at when it has nothing to do."""
    shutil.copy(packages / "rust.elf", work)
    own = re.compile(r"^\w+ \w (_R\w*6kernel\w*|kernel_\w+)$", re.M)  # the crate `kernel` and its boot code
    (work / "symbols").write_text("\n".join(match[0] for match in own.finditer(command("nm", packages / "rust.elf"))))
    arguments = ["-m", "16", "-vga", "none", "-serial", "file:console", "-kernel", "rust.elf", "-append", "idle"]
    return System(arguments, installed("seabios"), ("console", b"did not crash"), long=True)


SYSTEMS = {f.__name__: f for f in (ovmf, linux, linux32, cloud, xen, memtest, seabios, grub, rust)}
