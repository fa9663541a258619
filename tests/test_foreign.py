"""Files of foreign formats, and texts, given as images: each is named, and the sentence says what can be done."""

import gzip
import lzma
from pathlib import Path

import pytest
import specimens
from cli import call, output, refused

from x86tables.readers.foreign import MAGICS

HERE = Path(__file__).parent
AT = ["--base", "0", "--gdt", "0x1000,0x37", "--idt", "0x1100,0x7f", "--cr3", "0x4000"]


@pytest.mark.parametrize("options", [[], AT])
@pytest.mark.parametrize(("offset", "magic", "what", "instead"), MAGICS)
def test_a_foreign_format_is_named(
    offset: int, magic: bytes, what: str, instead: str, options: list[str], tmp_path: Path
) -> None:
    (path := tmp_path / "image").write_bytes((bytes(offset) + magic).ljust(0x8000, b"\0"))
    if magic.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5")):  # one packing is taken off
        path.write_bytes(lzma.compress(path.read_bytes()))
    assert refused("dump", path, *options) == f"{path}: {what}: {instead}"
    assert refused("check", path, *options) == f"{path}: {what}: {instead}"


def test_programs_for_efi_and_dos(tmp_path: Path) -> None:
    data = bytearray(0x200)
    data[:2], data[0x3C] = b"MZ", 0x80
    (path := tmp_path / "image").write_bytes(data)
    assert "a DOS program (MZ): give the ELF file" in refused("dump", path, *AT)
    data[0x80:0x84] = b"PE\0\0"
    path.write_bytes(data)
    assert "a PE file (an EFI or Windows program): give the ELF file" in refused("dump", path, *AT)


def test_packed_twice(tmp_path: Path) -> None:
    (path := tmp_path / "image").write_bytes(gzip.compress(gzip.compress(specimens.core())))
    assert refused("dump", path).endswith("gzip data inside of other compressed data: unpack it until an image is left")


def test_flat_memory_by_force(tmp_path: Path) -> None:
    """Memory may begin like anything: who says that it is raw is believed."""
    (path := tmp_path / "image").write_bytes(b"MZ" + specimens.memory()[2:])
    assert "GDT" in output("dump", path, "--image-format", "raw", "--base", specimens.FRAME, "--gdt", specimens.FRAME)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ((HERE / "images/linux.txt").read_bytes(), None),
        (specimens.MONITOR.encode(), "give it as --registers FILE"),
        (specimens.SYSTEM_MAP, "give it as --symbols FILE"),
        (b"# tables\n[gdt]\nbase = 0x1000\n", "a configuration: its name must end in .toml"),
        (b"[[cpu]]\ntss = {}\n", "a configuration: its name must end in .toml"),
    ],
)
def test_a_text_that_belongs_to_an_option(text: bytes, wanted: str | None, tmp_path: Path) -> None:
    (path := tmp_path / "image").write_bytes(text)
    told = refused("dump", path)
    assert (wanted or "a flat image does not say where its tables are") in told
    if wanted:
        assert wanted in refused("check", path, *AT)


def test_a_log(tmp_path: Path) -> None:
    log = next(path for path in sorted((HERE / "logs").iterdir()) if ".log" in path.name)
    assert "`x86tables log FILE` reads it" in refused("dump", log)
    assert "`x86tables log FILE` reads it" in refused("decode", "--as", "error-code", "0x42", "--in", log)


def test_bytes_are_no_text(tmp_path: Path) -> None:
    (path := tmp_path / "image").write_bytes(specimens.memory() + specimens.MONITOR.encode())
    assert call("dump", path, "--base", specimens.FRAME, "--gdt", f"{specimens.FRAME},0x37")[0] == 0
