"""Files that are written: all of them take their names when they are complete, or none does."""

from __future__ import annotations

import os
from contextlib import contextmanager, redirect_stdout, suppress

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@contextmanager
def replacing(paths: Sequence[str], mode: int | None = None, most: int = 0o7777) -> Iterator[list[str]]:
    """A new, empty file beside each path, for the caller to fill; they take the paths as names when the block ends.

    When it raises they are gone, and what had these names is as it was. `mode` is that of the new files: by default
    that of a file that is replaced, or what the umask leaves; `most` is what others than the owner may have at all. A
    symbolic link is replaced, not written through. UsageError where no file can be.
    """
    complete: list[str] = []
    try:
        for path in paths:
            complete.append(_new_file(path, 0o600 | most & 0o666))
        yield complete
        for path, name in zip(paths, complete, strict=True):
            if mode is not None or os.path.isfile(path):
                allowed = os.stat(path, follow_symlinks=False).st_mode & 0o7777 if mode is None else mode
                os.chmod(name, allowed & (0o700 | most))
        for path, name in zip(paths, complete, strict=True):
            os.replace(name, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # such as a full disk
            error.filename = ", ".join(paths)
        for name in complete:
            with suppress(OSError):  # it has got its name already
                os.unlink(name)
        raise


@contextmanager
def printing(path: str, read: Sequence[object]) -> Iterator[None]:
    """What is printed goes to a file; when the block raises, what had this name is as it was.

    UsageError where it is one of those that are `read`: of these, what is not the name of a file is passed over.
    """
    names = [name for each in read for name in (each if isinstance(each, list) else [each]) if isinstance(name, str)]
    for name in names:
        name = name if os.path.exists(name) else name.rpartition("@")[0]
        if os.path.exists(name) and os.path.exists(path) and os.path.samefile(name, path):
            raise UsageError(f"-o {path}: this is one of the files to read")
    with (
        replacing([path]) as (complete,),
        open(complete, "w", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
    ):
        yield


def _new_file(path: str, mode: int) -> str:
    """An empty file under a name of its own in the directory of `path`."""
    if os.path.lexists(path) and not os.path.islink(path) and not os.path.isfile(path):
        raise UsageError(f"{path}: not a file")
    directory = os.path.dirname(path)
    if not os.path.isdir(directory or "."):
        raise UsageError(f"{path}: there is no such directory")
    name = os.path.join(directory, f".x86tables-{os.urandom(8).hex()}")
    try:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    return name


def write_all(folder: str, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made if need be. UsageError, and nothing has changed, when one cannot be."""
    made = _missing(folder)
    paths = [os.path.join(folder, name) for name in files]
    try:
        os.makedirs(folder, exist_ok=True)
        with replacing(paths) as complete:
            for path, name, contents in zip(paths, complete, files.values(), strict=True):
                try:
                    with open(name, "wb") as file:
                        file.write(contents)
                except OSError as error:
                    raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    except BaseException:
        for directory in made:
            with suppress(OSError):
                os.rmdir(directory)
        raise


def _missing(folder: str) -> list[str]:
    """The directories that are to be made for a folder, the innermost first."""
    found = []
    while folder and not os.path.lexists(folder):
        found.append(folder)
        folder = os.path.dirname(folder.rstrip("/"))
    return found
