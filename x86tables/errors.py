"""What can go wrong, and for whom: the caller's mistake, the image's, something that is not there."""

from __future__ import annotations

__all__ = ["ImageError", "NotThere", "UsageError", "X86TablesError"]


class X86TablesError(Exception):
    """Base of every error that x86tables raises on purpose; its text is a sentence for a person."""


class UsageError(X86TablesError, ValueError):
    """The caller's mistake: a field out of range, a size that does not fit, an option that contradicts another."""


class ImageError(X86TablesError):
    """The image's fault: names the file, the offset where that makes sense, what was found and what was expected."""


class NotThere(X86TablesError, LookupError):  # noqa: N818 - reads better in `except`
    """Something asked for is not there: a slot beyond a limit, a table that was never loaded."""


def reason(error: BaseException) -> str:
    """What an exception of another library says; its class where it says nothing."""
    return str(error) or type(error).__name__
