"""Round trips of every layout: `python tests/roundtrips.py N [SEED]`, the laws of tests/test_layout.py N times each.

Of random bytes, whole tables of them at once: what was parsed builds the same bytes, one by one and as a table, and the
construct object of that name agrees.
"""

import random
import sys
import time

from x86tables import Layout, schemas, strategies

AT_ONCE = 1000


def round_trips(layout: type[Layout], count: int, rng: random.Random) -> None:
    """AssertionError with the bytes that do not come back."""
    construct = getattr(schemas, layout.__name__, None)
    for done in range(0, count, AT_ONCE):
        data = rng.randbytes(layout.size * min(AT_ONCE, count - done))
        rows = [data[at : at + layout.size] for at in range(0, len(data), layout.size)]
        values = layout.parse_table(data)
        assert layout.build_table(values) == data
        for row, value in zip(rows, values, strict=True):
            assert bytes(value) == row and layout.parse(row) == value and layout.from_int(int(value)) == value, (
                row.hex()
            )
        if construct is not None and construct.sizeof() == layout.size:
            assert construct.parse(rows[0]) == values[0] and construct.build(values[0]) == rows[0], rows[0].hex()


def main() -> int:
    """Every layout, with the time that it takes."""
    count, rng = int(sys.argv[1]), random.Random(sys.argv[2] if len(sys.argv) > 2 else "0")
    for layout in strategies.LAYOUTS:
        start = time.monotonic()
        round_trips(layout, count, rng)
        print(f"{layout.__name__}: {count:,} round trips, {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
