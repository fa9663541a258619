"""What `--format json` prints: one module per command, with the declarations of its objects."""

from __future__ import annotations

from ...documents import SCHEMA, Document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...documents import Natural


class Answer(Document, schema={"const": SCHEMA}):
    """What a command prints."""

    schema: Natural = SCHEMA


class ImageJson(Document):
    """What every command says of the image."""

    path: str
    format: str
    remarks: list[str]
