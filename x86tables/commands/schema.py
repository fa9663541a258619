"""Print the JSON Schema of the configuration, for editors.

With it, a TOML editor completes keys and marks mistakes: `x86tables schema > x86tables.schema.json`, and
`#:schema ./x86tables.schema.json` as the first line of the configuration.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`schema` takes none."""


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from ..config.schema import schema
    from ..render.json import output as output_json

    output_json(schema())
    return 0
