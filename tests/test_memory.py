"""Physical memory: what is known, what is absent, overlays, and files that are compressed."""

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from x86tables.errors import ImageError
from x86tables.machine.files import File, load
from x86tables.machine.memory import PAGE, Memory, Recording
from x86tables.machine.probe import Absent

zstd = zstandard.ZstdCompressor().compress

# Pieces and overlays in a small space, so that they meet and overlap
PIECES = st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=20)), max_size=6)


def model(pieces: list[tuple[int, bytes]], overlays: list[tuple[int, bytes]]) -> dict[int, int]:
    """Address -> byte, the slow way: of two pieces the one that starts lower has the bytes, overlays come over all."""
    known: dict[int, int] = {}
    for start, data in sorted(pieces, key=lambda piece: piece[0]):
        for address, byte in enumerate(data, start):
            known.setdefault(address, byte)
    for start, data in overlays:
        known.update(enumerate(data, start))
    return known


@given(PIECES, PIECES)
def test_any_layout_reads_as_the_slow_way_says(
    pieces: list[tuple[int, bytes]], overlays: list[tuple[int, bytes]]
) -> None:
    memory = Memory((start, len(data), data, 0) for start, data in pieces)
    for start, data in overlays:
        memory.overlay(start, data)
    known = model(pieces, overlays)
    for address in range(90):
        assert memory.holds(address) == (address in known)
        for size in (1, 7):
            missing = next((at for at in range(address, address + size) if at not in known), None)
            if missing is None:
                assert memory.read(address, size) == bytes(known[at] for at in range(address, address + size))
            else:
                with pytest.raises(Absent) as caught:
                    memory.read(address, size)
                assert caught.value.address == missing
    assert [address for part in memory.ranges for address in part] == sorted(known)


def test_absent_is_a_sentence() -> None:
    with pytest.raises(Absent, match="physical page 0x1000 is not in this image"):
        Memory([(0, 0x1000, bytes(0x1000), 0)]).read(0xFF0, 0x20)


def test_a_piece_is_a_part_of_its_file() -> None:
    memory = Memory([(0x1000, 4, b"0123456789", 3)])
    assert memory.read(0x1001, 3) == b"456"
    assert not memory.holds(0x1004)


def test_pieces_that_follow_in_one_file_are_one() -> None:
    data = bytes(range(64))
    memory = Memory((address, 16, data, address) for address in range(0, 64, 16))
    assert memory.read(8, 40) == data[8:48]
    assert memory.ranges == [range(64)]


def test_a_copy_is_not_seen_in_the_other() -> None:
    memory = Memory([(0, 4, b"abcd", 0)])
    copy = memory.copy()
    copy.overlay(1, b"X")
    assert (memory.read(0, 4), copy.read(0, 4)) == (b"abcd", b"aXcd")


def test_recording_notes_every_page() -> None:
    memory = Memory([(0, 4 * PAGE, bytes(4 * PAGE), 0)])
    recording = Recording(memory)
    recording.read(PAGE - 1, 2)
    assert recording.pages == {0, PAGE}
    with pytest.raises(Absent):
        recording.read(8 * PAGE + 5, 1)
    assert recording.pages == {0, PAGE, 8 * PAGE}, "also what is not there: that it is not, was seen"


CONTENT = b"head" + bytes(3 << 20) + b"tail" + bytes(70_000)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstd])
def test_files_are_opened_as_they_are(pack: object, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(pack(CONTENT))  # type: ignore[operator]
    data = load(str(path))
    assert isinstance(data, File), "read when asked for"
    assert (len(data), data[:4], data[3 << 20 : (3 << 20) + 8]) == (len(CONTENT), b"head", bytes(4) + b"tail")
    assert data[:] == CONTENT


def test_two_compressed_streams_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert load(str(tmp_path / "image"))[:] == b"one two"
    (tmp_path / "image").write_bytes(zstd(b"one ") + zstd(b"two"))
    assert load(str(tmp_path / "image"))[:] == b"one two"


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such file"):
        load(str(tmp_path / "none"))
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="empty"):
        load(str(tmp_path / "empty"))


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path: Path) -> None:
    """A mapping would end the process with SIGBUS."""
    path = tmp_path / "log"
    path.write_bytes(bytes(3 * PAGE))
    data = load(str(path))
    with path.open("r+b") as file:
        file.truncate(PAGE + 8)
    assert data[PAGE - 8 : PAGE] == bytes(8)
    for part in (slice(PAGE - 8, PAGE + 9), slice(2 * PAGE, 2 * PAGE + 1), slice(None)):
        with pytest.raises(ImageError, match=f"{path}: .* truncated .* had 0x3000 bytes and ends at 0x1008 now"):
            data[part]


def test_a_file_is_a_stream_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    data = load(str(tmp_path / "file"))
    assert isinstance(data, File)
    assert (data.read(3), data.tell(), data.read(100), data.read(1)) == (b"012", 3, b"3456789", b"")
    assert (data.seek(-2, 2), data.read()) == (8, b"89")
    assert (data.seek(4), data.seek(1, 1), data.read(1)) == (4, 5, b"5")
    assert (data[-2:], data[8:99], data[5:2]) == (b"89", b"89", b"")


def test_files_in_proc_have_no_size() -> None:
    """As /proc/kallsyms, which lists symbols."""
    assert Path("/proc/self/status").stat().st_size == 0
    assert load("/proc/self/status")[:5] == b"Name:"
