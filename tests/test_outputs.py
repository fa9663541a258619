"""Files that are written: complete under their names, or not at all."""

import os
import stat
from pathlib import Path

import pytest

from x86tables import UsageError
from x86tables.outputs import replacing, write_all


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_at_once(tmp_path: Path) -> None:
    """No name is taken before the last file is complete."""
    (tmp_path / "a").write_bytes(b"old")
    with replacing([str(tmp_path / name) for name in "ab"]) as complete:
        for name in complete:
            Path(name).write_bytes(b"new")
        assert (tmp_path / "a").read_bytes() == b"old" and not (tmp_path / "b").exists()
        assert all(os.path.dirname(name) == str(tmp_path) for name in complete)
    assert everything(tmp_path) == {"a": b"new", "b": b"new"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_finished(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(type(error)), replacing([str(tmp_path / name) for name in "ab"]) as complete:
        Path(complete[0]).write_bytes(b"new")
        raise error
    assert everything(tmp_path) == {"a": b"old"}


def test_a_symbolic_link_is_replaced(tmp_path: Path) -> None:
    """A link that somebody laid into the folder does not lead a file elsewhere."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"kept")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "gdt.bin").symlink_to(outside)
    (folder / "idt.bin").symlink_to(tmp_path / "nowhere")
    write_all(str(folder), {"gdt.bin": b"gdt", "idt.bin": b"idt"})
    assert everything(tmp_path) == {"outside": b"kept", "out/gdt.bin": b"gdt", "out/idt.bin": b"idt"}
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_modes(tmp_path: Path) -> None:
    """A file that is replaced keeps its mode, a new one has what the umask leaves, or what it is given."""
    old, new, given = (tmp_path / name for name in ("old", "new", "given"))
    old.write_bytes(b"")
    old.chmod(0o640)
    mask = os.umask(0o027)
    try:
        write_all(str(tmp_path), {"old": b"1", "new": b"2"})
    finally:
        os.umask(mask)
    with replacing([str(given)], 0o751):
        pass
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new, given)] == [0o640, 0o640, 0o751]


def test_folders_are_made_and_unmade(tmp_path: Path) -> None:
    """Those of a build that fails go again, those that were there stay."""
    (tmp_path / "there").mkdir()
    write_all(str(tmp_path / "there/a/b"), {"file": b"1"})
    with pytest.raises(UsageError, match=r"/there/c/d/x/y: there is no such directory$"):
        write_all(str(tmp_path / "there/c/d"), {"file": b"1", "x/y": b"2"})
    assert everything(tmp_path) == {"there/a/b/file": b"1"}
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["a"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "c")
    for name in ("b", "c"):
        with pytest.raises(UsageError, match=rf"/{name}: not a file$"):
            write_all(str(tmp_path), {"a": b"1", name: b"2"})
    assert not (tmp_path / "a").exists()
