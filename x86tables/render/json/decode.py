"""What `decode` prints: one value, and what it names in an image."""

from __future__ import annotations

from ...documents import LEFT_OUT, Answer, hexadecimal
from ..anomalies import anomalies
from ..describe import meaning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ...documents import Hex, Natural, Raw
    from ...machine.symbols import Symbols
    from ...tables.layout import Layout
    from ..error_lookup import Named
    from .error_lookup import NamedEntryJson, NamedPageJson


class DecodeJson(Answer):
    """One value.

    kind: as --as takes it
    fields: hex strings for bases, offsets and all of 32 bits or more, else numbers and booleans
    odd: what is unusual about it
    in_image: what an error code names, CPU by CPU
    """

    kind: str
    raw: Raw
    fields: dict[str, Hex | Natural | bool]
    meaning: str
    odd: list[str]
    in_image: list[NamedEntryJson | NamedPageJson] = LEFT_OUT


def decode(kind: str, value: Layout, found: Sequence[Named] | None, symbols: Symbols | None) -> DecodeJson:
    """What `decode --format json` prints."""
    named: Any = LEFT_OUT
    if found is not None and symbols is not None:
        from .error_lookup import in_image

        named = in_image(found, symbols)
    return DecodeJson(
        kind=kind,
        raw=bytes(value),
        fields=fields(value),
        meaning=meaning(value),
        odd=anomalies(value),
        in_image=named,
    )


def fields(value: Layout) -> dict[str, Any]:
    """Each field by name, as JSON has it."""
    return {
        field.name: hexadecimal(number) if field.width >= 32 or field.name in ("base", "offset") else number
        for field, number in zip(value.fields, value, strict=True)
    }
