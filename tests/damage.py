"""Good files damaged: bytes where headers are, words that a structure is made of, the tokens and lines of a text."""

import random
import re

LIES = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 4,
    b"\0\0\0\0\0\0\0\x80",
    b"\xff" * 7 + b"\x7f",
    b"\0\0\0\x80",
    b"\1" + b"\0" * 7,
]
NUMBERS = [
    b"0", b"1", b"-1", b"7", b"256", b"0x", b"0123", b"1e9", b"4096", b"0xffffffffffffffff", b"0x8000000000000000",
    b"18446744073709551616", b"1_000", b"9" * 400, b"0x" + b"f" * 400,
]  # fmt: skip
PIECES = [
    b"\0",
    b"\x1b[2J",
    b"\xff",
    "é".encode(),
    b'"',
    b"'''",
    b"[[",
    b"]",
    b"{",
    b"}",
    b"=",
    b"#",
    b"*/",
    b"\\",
    b"a" * 3000,
]
TOKEN = re.compile(rb"0x[0-9a-fA-F]+|\d+|\w+|[^\S\n]+|\n|[^\w\s]")


def damaged(good: bytes, rng: random.Random) -> bytes:
    """`good` with one to four changes, most of them where headers are, or in words that say something."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(min(len(data), rng.choice((64, 256, 1024, len(data)))))
        change = rng.randrange(8)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.randrange(256)
        elif change == 2:
            lie = rng.choice(LIES)
            data[at : at + len(lie)] = lie[: len(data) - at]
        elif change == 3:
            del data[at : at + rng.randint(1, 64)]
        elif change == 4:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        elif change == 5:
            del data[rng.randrange(len(data)) :]
        else:
            _change_word(data, rng)
    return bytes(data)


def _change_word(data: bytearray, rng: random.Random) -> None:
    """Change an aligned word that is not 0, an entry of a page table for instance, or a size or an offset in a header:
    by a bit, by a little, to what another word says, to where it stands, or to the size of the file."""
    size = rng.choice((2, 4, 8, 8))
    for _ in range(64):
        at = rng.randrange(len(data)) // size * size
        if value := int.from_bytes(data[at : at + size], "little"):
            break
    else:
        return
    other = rng.randrange(len(data)) // size * size
    value = rng.choice((
        value ^ 1 << rng.randrange(8 * size),
        value ^ 1 << rng.choice((0, 1, 2, 7, 8 * size - 1)),
        value + rng.choice((-0x1000, -8, -1, 1, 8, 0x1000)),
        int.from_bytes(data[other : other + size], "little"),
        at | value & 0xFFF,
        len(data) - rng.randint(0, 1),
    )) % (1 << 8 * size)  # fmt: skip
    data[at : at + size] = value.to_bytes(size, "little")[: len(data) - at]


def damaged_text(good: bytes, rng: random.Random) -> bytes:
    """`good` with one to four changes of its numbers, tokens and lines; now and then of its bytes."""
    for _ in range(rng.randint(1, 4)):
        tokens = TOKEN.findall(good)
        if not tokens or rng.random() < 0.1:
            return damaged(good, rng)
        at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        change = rng.randrange(6)
        if change == 0:
            numbers = [place for place, token in enumerate(tokens) if token[:1].isdigit()] or [at]
            tokens[rng.choice(numbers)] = rng.choice(NUMBERS)
        elif change == 1:
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif change == 2:
            tokens[at] = tokens[other]
        elif change == 3:
            tokens[at] += rng.choice(PIECES)
        elif change == 4:
            tokens[at] *= rng.choice((0, 2, 40))
        else:
            lines = good.splitlines(keepends=True)
            line = rng.randrange(len(lines))
            lines[line : line + rng.randint(0, 3)] = [rng.choice(lines)] * rng.choice((0, 1, 2, 40))
            tokens = lines
        good = b"".join(tokens)
    return good
