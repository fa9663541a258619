"""Formats that are not read, recognised by their first bytes: what each is, and what can be done instead.

Without this list they would be taken for flat memory, and decoded into nonsense. `--image-format raw` still does that.
"""

from __future__ import annotations

from ..errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..machine.files import Data

_DUMP = "take an ELF core, by QEMU's `dump-guest-memory FILE` without -z, -l, -s and -R"
_FLAT = "make flat memory of it, and give that with --registers FILE, or --cr3 and --idt"
_VMEM = "give the .vmem file beside it as flat memory, with --registers FILE, or --cr3 and --idt"
_UNPACK = "unpack it until an image is left"

# Offset, bytes there, what the file is, what can be done. Sources: the headers of makedumpfile, LiME, AVML, crash
# (vmware_vmss.h, symbols of Windows dumps), QEMU (migration/savevm.h), dissect.hypervisor; the PE format.
MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PAGEDUMP", "a Windows crash dump of 32 bits", f"{_FLAT}: by Volatility's layerwriter"),
    (0, b"\xd0\xbe\xd0\xbe", "a VMware state file (vmss, vmsn) of 32 bits", _VMEM),
    (0, b"\xd0\xbe\xd2\xbe", "a VMware state file (vmss, vmsn) of 32 bits", _VMEM),
    (0, b"\x14\x20\x28\x01", "a saved state of Hyper-V's (vmrs)", f"{_FLAT}: by vm2dmp and Volatility's layerwriter"),
    (0, b"\x7fVirtualBox SavedState", "a saved state of VirtualBox's", "take an ELF core by `debugvm dumpvmcore`"),
    (0, b"QFI\xfb", "a qcow2 disk image, not memory", f"load a snapshot in it with -loadvm and -S, and {_DUMP}"),
    (0x202, b"HdrS", "a Linux bzImage (a compressed kernel)", "give the vmlinux that was linked, or a memory dump"),
    (0, b"\x1f\x8b\x08", "gzip data inside of other compressed data", _UNPACK),
    (0, b"\xfd7zXZ\0", "xz data inside of other compressed data", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "zstd data inside of other compressed data", _UNPACK),
    (0, b"BZh", "bzip2 data", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "lz4 data", _UNPACK),
)
_TEXT, _NOT_TEXT = 1 << 16, bytes(range(7)) + bytes(range(0x0E, 0x1B))  # bytes looked at; those that no text has


def refuse(path: str, data: Data) -> None:
    """ImageError for a file of a known kind that is not read; it names the kind and what to do."""
    for offset, magic, what, instead in MAGICS:
        if data[offset : offset + len(magic)] == magic:
            raise ImageError(f"{path}: {what}: {instead}")
    if data[:2] == b"MZ":
        at = int.from_bytes(data[0x3C:0x40], "little")
        what = "a PE file (an EFI or Windows program)" if data[at : at + 4] == b"PE\0\0" else "a DOS program (MZ)"
        raise ImageError(
            f"{path}: {what}: give the ELF file that it was made of, or a memory dump of the machine that runs it; "
            "--image-format raw takes it as flat memory all the same"
        )
    if instead := _text(data):
        raise ImageError(f"{path}: {instead}")


def _text(data: Data) -> str:
    """What to do with a text that was given as an image; "" when its kind is not known."""
    head = data[:_TEXT]
    if any(byte in head for byte in _NOT_TEXT):
        return ""
    import re

    def has(pattern: bytes) -> bool:
        return re.search(pattern, head, re.MULTILINE) is not None

    if has(rb"^ *\d+: v=[0-9a-f]{2} e=[0-9a-f]{4} i=") or has(rb"^check_exception old: "):
        return "a log of `qemu -d int`, not an image: `x86tables log FILE` reads it"
    if has(rb"^[ \t]*(?:GDT|IDT)= +[0-9a-fA-F]{8,16} [0-9a-fA-F]{8}\b"):
        return "the text of `info registers`, not memory: give it as --registers FILE with the IMAGE"
    if head.lstrip()[:1] == b"{" and has(rb'"[gi]dtr" *:'):
        return "registers as JSON, not memory: give it as --registers FILE with the IMAGE"
    if has(rb"^[0-9a-fA-F]{8,16} [A-Za-z] \S+"):
        return "a list of symbols, not an image: give it as --symbols FILE with the IMAGE"
    if has(rb"^\[(?:\[cpu\]\]|gdt|idt|tss)") or has(rb"^(?:gdt|idt|tss)\.[\w.]+ *= "):
        return "it looks like a configuration: its name must end in .toml"
    return ""
