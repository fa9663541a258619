"""What `--format json` prints: one module per command, with the declarations of its objects."""

from __future__ import annotations

from ...documents import Document


class ImageJson(Document):
    """What every command says of the image."""

    path: str
    format: str
    remarks: list[str]


def output(document: object, indent: int = 1) -> None:
    """Print a document."""
    import json

    print(json.dumps(document, indent=indent))
