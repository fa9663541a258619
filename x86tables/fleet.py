"""Many images: each judged by itself, in processes of its own, and summed up in a record."""

from __future__ import annotations

from . import api
from .assessment import Outcome
from .errors import X86TablesError
from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from .api import Image
    from .assessment import Assessment

SECONDS = 600  # that one image may take


class Summary(Record):
    """What `check` says of an image: its exit status, the worst verdict and why, the verdict of each CPU, how many
    findings are errors and warnings.

    Where it could not be judged, the status is 2 (70 for an error of x86tables itself) and `error` says why; the other
    fields are empty. `document` is what the caller made of it.
    """

    path: str
    status: int
    verdict: str = ""
    reason: str = ""
    cpus: tuple[str, ...] = ()
    errors: int = 0
    warnings: int = 0
    error: str = ""
    document: str = ""


def summarize(
    path: str,
    opening: Mapping[str, Any] = {},
    judging: Mapping[str, Any] = {},
    document: Callable[[Image, Iterable[Assessment], Outcome], str] | None = None,
) -> Summary:
    """One image judged; `opening` and `judging` are arguments of `x86tables.open` and `Image.assessments`.

    What is wrong with an image is in its Summary: this raises nothing of ours.
    """
    try:
        image = api.open(path, **opening)
        outcome = Outcome(image.problems())
        seen: list[tuple[str, str, list[str]]] = []

        def noted() -> Iterator[Assessment]:
            for each in outcome.of(image.assessments(**judging)):
                seen.append((each.verdict, each.reason, [finding.severity for finding in each.findings]))
                yield each

        judged = noted()
        made = "" if document is None else document(image, judged, outcome)
        for _ in judged:  # all that the document did not ask for
            pass
    except X86TablesError as error:
        return Summary(path, 2, error=str(error))
    found = [severity for _, _, severities in seen for severity in severities]
    return Summary(
        path,
        outcome.status,
        outcome.verdict,
        next((reason for verdict, reason, _ in seen if verdict == outcome.verdict), ""),
        tuple(verdict for verdict, _, _ in seen),
        found.count("error") + len(outcome.problems),
        found.count("warning"),
        document=made,
    )


def summarize_all(
    paths: Sequence[str],
    jobs: int = 1,
    opening: Mapping[str, Any] = {},
    judging: Mapping[str, Any] = {},
    document: Callable[[Image, Iterable[Assessment], Outcome], str] | None = None,
) -> Iterator[Summary]:
    """The summaries of many images, each as soon as it and all before it are there; over `jobs` processes.

    An image that ends its process, or takes more than SECONDS, is one with an error.
    """
    from .prove.workers import Crashed, run

    def prepare() -> Callable[[int], Summary]:
        return lambda number: summarize(paths[number], opening, judging, document)

    waiting: dict[int, Summary] = {}
    following = 0
    for number, result in run(prepare, range(len(paths)), jobs, size=1, seconds=SECONDS):
        if isinstance(result, Crashed):
            result = Summary(
                paths[number], 70, error=f"{paths[number]}: the process that judged it ended: {result.why}"
            )
        waiting[number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1
