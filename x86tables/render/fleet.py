"""Many images as text, a line each, and how they fare together."""

from __future__ import annotations

from .lines import coloured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..fleet import Summary


def lines(paths: Sequence[str], summaries: Iterable[Summary]) -> Iterator[str]:
    """The line of each image as it comes, then the table of all."""
    width = max(map(len, paths))
    counts: dict[str, int] = {}
    for one in summaries:
        name = one.verdict or "not judged"
        counts[name] = counts.get(name, 0) + 1
        pad = " " * (len("not-applicable") - len(name))
        yield f"{one.path:<{width}}  {coloured(name)}{pad}  {one.error.removeprefix(f'{one.path}: ') or _said(one)}"
    yield ""
    total = sum(counts.values())
    yield f"{total} image{'s' if total != 1 else ''}"
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        yield f"  {count:>5}  {coloured(name)}"


def _said(one: Summary) -> str:
    parts = [f"{len(one.cpus)} CPU{'s' if len(one.cpus) != 1 else ''}"]
    others = {verdict: one.cpus.count(verdict) for verdict in one.cpus if verdict != one.verdict}
    parts += [f"{count} {verdict}" for verdict, count in others.items()]
    counts = (one.errors, "error"), (one.warnings, "warning")
    parts += [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
    return f"{', '.join(parts)}: {one.reason}"
