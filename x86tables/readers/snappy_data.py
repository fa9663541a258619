"""Raw snappy data: how much it unpacks to, said before anything is unpacked; and the unpacking, by a library."""

from __future__ import annotations

from ..errors import ImageError


def unpacked_size(content: bytes) -> int:
    """The size that the data begins with, in groups of 7 bits; -1 for what is no such number."""
    size = 0
    for number, byte in enumerate(content[:5]):
        size |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return size
    return -1


def unpack(where: str, content: bytes, size: int) -> bytes:
    """The `size` bytes that are packed in it; ValueError where it holds another number, or is damaged."""
    try:
        from cramjam import snappy
    except ImportError:
        raise ImageError(f"{where}, is snappy data and needs the package cramjam: pip install cramjam") from None
    if (found := unpacked_size(content)) != size:
        raise ValueError(f"it unpacks to {found:#x} bytes, {size:#x} expected")
    try:
        return bytes(snappy.decompress_raw(content))
    except Exception as error:  # cramjam's own is a plain Exception
        raise ValueError(str(error)) from None
