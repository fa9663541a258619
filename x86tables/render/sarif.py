"""Findings and verdicts as SARIF 2.1.0, for services that show the results of scans beside the code.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0". What GitHub wants besides: every
result has a location with a relative path and a line, and a fingerprint that stays the same from run to run. The
location is the line that is to be changed, where debugging information or a declaration tells which.
"""

from __future__ import annotations

import os

from .. import __version__
from ..checks import RULES
from ..delivery.scenarios import NOT_APPLICABLE
from ..delivery.simulate import SURVIVES, UNKNOWN
from ..origins import Origins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from ..api import Image
    from ..assessment import Assessment
    from ..checks import Rule
    from ..origins import Origin

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"error": "error", "warning": "warning", "note": "note"}
PROBLEM = {"error": "error", "warning": "warning", "note": "recommendation"}  # the words of GitHub's own property
SCENARIOS = {
    "stack-overflow": "a kernel stack that runs into its guard page is not survived",
    "current-stack": "an overflow of the stack in use is not survived",
    "double-fault-questions": "a double fault is not survived",
    "syscall-gap": "an exception right after SYSCALL, on the program's stack, is not survived",
    "sysret": "an exception right before SYSRET, or its own #GP, on the program's stack, is not survived",
    "survival-matrix": "an exception on a bad stack is not survived",
}
NEIGHBOUR = "unguarded-neighbour"  # the rule of a configuration's problems


def log(image: Image, assessments: Sequence[Assessment], problems: Iterable[str] = ()) -> dict[str, Any]:
    """The SARIF log of one `check`: one run, its rules, and a result for each problem, finding and bad verdict."""
    uri, origins = relative(image.path), Origins(image)
    rules = [_rule(rule) for rule in RULES] + [_scenario(name, title) for name, title in SCENARIOS.items()]
    rules.append(_neighbour())
    index = {rule["id"]: number for number, rule in enumerate(rules)}
    results = [
        *(_problem(problem, origins) for problem in problems),
        *_verdicts(assessments, origins),
        *_findings(assessments, origins),
    ]
    for result in results:
        result["ruleIndex"] = index[result["ruleId"]]
        result["locations"] = [_location(uri, result.pop("where"), result.pop("origin"))]
    run = {
        "tool": {
            "driver": {
                "name": "x86tables",
                "version": __version__,
                "semanticVersion": __version__,
                "shortDescription": {"text": "Make, show, judge and prove x86-64 descriptor tables"},
                "rules": rules,
            }
        },
        # a run for each image: uploads of several images stand beside each other
        "automationDetails": {"id": f"x86tables/{uri}/"},
        "artifacts": [{"location": _place(uri), "roles": ["analysisTarget"]}],
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": list(_gaps(assessments, index))}],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": {"verdicts": {f"CPU {each.cpu}": each.verdict for each in assessments}},
    }
    return {"$schema": SCHEMA_URI, "version": "2.1.0", "runs": [run]}


def relative(path: str) -> str:
    """A path as a URI from the directory that the command runs in.

    Of a file outside of that, as one compiled elsewhere: the longest end of its path that is a file in there, else its
    name.
    """
    from urllib.parse import quote

    inside = os.path.relpath(path)
    if inside.startswith(os.pardir):
        parts = [part for part in path.split(os.sep) if part not in ("", os.curdir, os.pardir)]
        ends = [os.path.join(*parts[number:]) for number in range(len(parts))]
        inside = next(filter(os.path.isfile, ends), os.path.basename(path))
    return quote(os.fsencode(inside.replace(os.sep, "/")))


def _rule(rule: Rule) -> dict[str, Any]:
    sections = rule.sections
    text = "\n\n".join(f"{name}: {sections[name]}" for name in ("Why", "Fix") if name in sections)
    markdown = "\n\n".join(f"**{name}**: {sections[name]}" for name in ("Why", "Fix") if name in sections)
    for name in ("Bad", "Good"):
        if name in sections:
            markdown += f"\n\n**{name}**\n\n```\n{sections[name]}\n```"
    return _descriptor(rule.id, rule.title, rule.severity, text, markdown, rule.table)


def _scenario(name: str, title: str) -> dict[str, Any]:
    text = f"`x86tables check --scenario {name}` shows check by check what the processor does, and where it fails."
    return _descriptor(name, title, "error", text.replace("`", ""), text, "scenario")


def _neighbour() -> dict[str, Any]:
    text = "An overflow of this stack is not noticed: it overwrites what lies right below. Leave a page between them, "
    text += "unmapped when the kernel runs, and declare guard = 4096."
    title = "a declared stack without a guard lies right above another stack or a table"
    return _descriptor(NEIGHBOUR, title, "error", text, text, "declaration")


def _descriptor(name: str, title: str, severity: str, text: str, markdown: str, tag: str) -> dict[str, Any]:
    return {
        "id": name,
        "shortDescription": {"text": title},
        "fullDescription": {"text": f"{title[:1].upper()}{title[1:]}."},
        "help": {"text": text or title, "markdown": markdown or title},
        "defaultConfiguration": {"level": LEVELS[severity]},
        "properties": {
            "tags": ["x86-64", "kernel", tag],
            "precision": "high",
            "problem.severity": PROBLEM[severity],
        },
    }


def _verdicts(assessments: Iterable[Assessment], origins: Origins) -> Iterator[dict[str, Any]]:
    """Scenarios that do not end well; what is not known is a warning, as the command's exit status counts it too."""
    found: dict[tuple[str, str, str], list[int]] = {}
    places: dict[tuple[str, str, str], Origin] = {}
    for assessment in assessments:
        for scenario in {one.name: one for one in (assessment.overflow, *assessment.scenarios)}.values():
            if scenario.verdict not in (SURVIVES, NOT_APPLICABLE):
                key = scenario.name, scenario.verdict, scenario.reason
                found.setdefault(key, []).append(assessment.cpu)
                if key not in places:
                    places[key] = origins.scenario(assessment.machine, scenario)
    for (name, verdict, reason), cpus in found.items():
        level = "warning" if verdict == UNKNOWN else "error"
        yield _result(name, level, f"{verdict}: {reason}", name, cpus, places[name, verdict, reason])


def _problem(problem: str, origins: Origins) -> dict[str, Any]:
    """A problem of the configuration: its sentence names stacks and tables, and is the same from run to run."""
    return {
        "ruleId": NEIGHBOUR,
        "level": "error",
        "message": {"text": problem},
        "where": "declaration",
        "origin": origins.problem(problem),
        "partialFingerprints": {"x86tables/v1": f"{NEIGHBOUR}:{problem}"},
    }


def _findings(assessments: Iterable[Assessment], origins: Origins) -> Iterator[dict[str, Any]]:
    """Findings, each once with the CPUs that have it."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    places: dict[tuple[str, str, str, str], Origin] = {}
    for assessment in assessments:
        for finding in assessment.findings:
            key = finding.rule, LEVELS[finding.severity], finding.message, finding.where
            found.setdefault(key, []).append(assessment.cpu)
            if key not in places:
                places[key] = origins.finding(assessment.machine, finding)
    for key, cpus in found.items():
        rule, level, message, where = key
        yield _result(rule, level, message, where, cpus, places[key])


def _result(rule: str, level: str, message: str, where: str, cpus: list[int], origin: Origin) -> dict[str, Any]:
    names = ", ".join(map(str, cpus))
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": f"CPU {names}: {message}"},
        "where": where,
        "origin": origin,
        # addresses change from boot to boot, the place in the tables does not
        "partialFingerprints": {"x86tables/v1": f"{rule}:{where}:{names}"},
    }


def _location(uri: str, where: str, origin: Origin) -> dict[str, Any]:
    logical = [{"name": where, "fullyQualifiedName": where, "kind": "object"}]
    if origin.symbol is not None:
        kind = "function" if origin.code else "variable"
        logical.append({"name": origin.symbol, "fullyQualifiedName": origin.symbol, "kind": kind})
    place = _place(uri if origin.file is None else relative(origin.file))
    return {
        "physicalLocation": {"artifactLocation": place, "region": {"startLine": origin.line}},
        "logicalLocations": logical,
    }


def _place(uri: str) -> dict[str, Any]:
    return {"uri": uri, "uriBaseId": "%SRCROOT%"}


def _gaps(assessments: Iterable[Assessment], index: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The rules that could not be decided, and what they lack."""
    found: dict[tuple[str, str], list[int]] = {}
    for assessment in assessments:
        for gap in assessment.not_checked:
            found.setdefault((gap.rule, gap.needs), []).append(assessment.cpu)
    for (rule, needs), cpus in found.items():
        yield {
            "level": "note",
            "message": {"text": f"CPU {', '.join(map(str, cpus))}: {rule} was not checked: {needs}"},
            "associatedRule": {"id": rule, "index": index[rule]},
        }
