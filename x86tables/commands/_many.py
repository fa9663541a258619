"""`check` of several images: a line each, over processes."""

from __future__ import annotations

import json
import sys

from ..errors import UsageError
from ..fleet import summarize_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ..api import Image
    from ..assessment import Assessment, Outcome
    from ..fleet import Summary


def check(args: argparse.Namespace, opening: dict[str, Any], judging: dict[str, Any]) -> int:
    """Judge every image; the worst exit status."""
    from ..readers import number

    if args.format not in ("text", "jsonl"):
        raise UsageError(f"--format {args.format} is for one image: jsonl writes the JSON of each in a line")
    jobs = number(args.jobs, "--jobs", 1024) or 1
    documented = _line if args.format == "jsonl" else None
    statuses: list[int] = []

    def noted() -> Iterator[Summary]:
        for summary in summarize_all(args.image, jobs, opening, judging, documented):
            statuses.append(summary.status)
            yield summary

    if args.format == "jsonl":
        for one in noted():
            error = {"schema": 1, "image": {"path": one.path}, "error": one.error}
            print(one.document or json.dumps(error), flush=True)
    else:
        from ..render.fleet import lines
        from ..render.lines import output

        for line in lines(args.image, noted()):
            output([line])
            sys.stdout.flush()
    return max(statuses)


def _line(image: Image, assessments: Iterable[Assessment], outcome: Outcome) -> str:
    from ..render.json import check as document

    return document.line(image.snapshot, assessments, outcome)
