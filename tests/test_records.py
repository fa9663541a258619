"""Records: made by position and by name, few and many, and changed into others."""

import pytest

from x86tables.records import Record


def test_a_record_is_the_same_however_it_is_made() -> None:
    """Also after so many that a constructor was compiled."""

    class Point(Record):
        x: int
        y: int = 2
        z: int = 3

    for _ in range(100):
        assert tuple(Point(1)) == tuple(Point(x=1)) == tuple(Point(1, z=3)) == (1, 2, 3)
        assert Point(1, 5) == Point(1, y=5) == Point(1).replace(y=5) != Point(1)
        assert type(Point(1).replace(y=5)) is Point
        for args, kwargs in (((), {}), ((1, 2, 3, 4), {}), ((1,), {"x": 1}), ((1,), {"w": 1})):
            with pytest.raises(TypeError):
                Point(*args, **kwargs)
        with pytest.raises(TypeError, match="Point has no field w"):
            Point(1).replace(w=4)


def test_a_record_without_fields() -> None:
    class Nothing(Record):
        __annotations__ = {}

    assert Nothing() == Nothing() == Nothing().replace()
