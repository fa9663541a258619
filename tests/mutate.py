"""Mutants of the delivery: one operator, constant or condition changed, and a test must notice: `make mutants`.

The tests are collected once; each mutant is a fork of that process in which the functions of one module get the mutated
code. Survivors are printed, and are exit status 1. Mutants that behave as the original does are in
equivalent_mutants.txt, with the reason, and are not run.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from inspect import getsource
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
MODULES = ("deliver", "simulate")
TESTS = ("test_deliver", "test_simulate", "test_scenarios", "test_stacks", "test_prove")
EQUIVALENT = HERE / "equivalent_mutants.txt"
SECONDS = 20  # of one test, as the processor counts: a mutant that takes longer loops for ever
MEMORY = 2 << 30

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.FloorDiv,), ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,), ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}  # fmt: skip


def other(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.BoolOp(op, values):
            yield from (ast.BoolOp(op, [*values[:at], *values[at + 1 :]]) for at in range(len(values)))
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield operand
        case ast.If(test) | ast.IfExp(test) | ast.While(test) if not isinstance(test, ast.Constant):
            yield from (_with(node, test=ast.Constant(always)) for always in (True, False))
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
    yield from (operator() for operator in OPERATORS.get(type(node), ()))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    vars(changed).update(fields)
    return changed


def places(node: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None], int]]:
    """Each node below: itself, what puts another in its place, and its line. No types: they are not run."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for at, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _for_types(child):
                continue

            def put(new: ast.AST, at: int | None = at, name: str = name, value: object = value) -> None:
                if at is None:
                    setattr(node, name, new)
                else:
                    value[at] = new  # type: ignore[index]

            yield child, put, getattr(child, "lineno", getattr(node, "lineno", 0))
            yield from places(child)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign | ast.If) and "TYPE_CHECKING" in ast.unparse(node).splitlines()[0]


def mutants(source: str) -> Iterator[tuple[int, str, ast.Module]]:
    """(line, `before -> after`, the module) of each mutant; the module is only good until the next is asked for."""
    tree = ast.parse(source)
    before = ast.unparse(tree).splitlines()
    for node, put, line in [*places(tree)]:
        for new in other(node):
            put(new)
            after = ast.unparse(tree).splitlines()
            changed = [(a.strip(), b.strip()) for a, b in zip(before, after, strict=False) if a != b]
            yield line, " -> ".join(changed[0]), ast.fix_missing_locations(tree)
            put(node)


def transplant(module: ModuleType, tree: ast.Module) -> None:
    """Give a module that others have imported already the code and the constants of a mutant."""
    new: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(tree, module.__file__ or "", "exec"), new)  # noqa: S102
    for name, old in [*vars(module).items()]:
        if isinstance(old, FunctionType | type) and old.__module__ == module.__name__:
            _replace_code(old, new[name])
        elif isinstance(old, int | tuple | frozenset | set) and new.get(name) != old:
            for user in [*sys.modules.values()]:
                if getattr(user, name, None) is old:
                    setattr(user, name, new[name])


def _replace_code(old: object, new: object) -> None:
    if isinstance(old, FunctionType) and isinstance(new, FunctionType):
        old.__code__, old.__defaults__ = new.__code__, new.__defaults__
    elif isinstance(old, property) and isinstance(new, property):
        _replace_code(old.fget, new.fget)
    elif isinstance(old, type):
        for name, value in vars(old).items():
            _replace_code(value, vars(new).get(name))


class Runner:
    """In the place of pytest's own loop over the tests: all of them for the original, then for each mutant."""

    def __init__(self, modules: list[str], jobs: int, wanted: str) -> None:
        self.modules, self.jobs, self.wanted = modules, jobs, wanted
        self.running: dict[int, str] = {}
        self.total, self.survivors = 0, list[str]()
        self.equivalent = {line for line in EQUIVALENT.read_text().splitlines() if not line.startswith("#")}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._start("the original", lambda: None, session)
        self._reap(0)
        if not self.survivors:
            pytest.exit("the original fails its tests", 2)
        self.survivors.clear()
        for name in self.modules:
            module = import_module(f"x86tables.delivery.{name}")
            for line, change, tree in mutants(getsource(module)):
                if self.wanted in change and f"{name}: {change}" not in self.equivalent:
                    self._start(f"{name}.py:{line}: {change}", partial(transplant, module, tree), session)
        self._reap(0)
        return True

    def _start(self, mutant: str, change: Callable[[], None], session: pytest.Session) -> None:
        self._reap(self.jobs - 1)
        self.total += 1
        child = os.fork()
        if child:
            self.running[child] = mutant
            return
        status = 1
        try:
            change()
            status = self._run(session)
        finally:
            os._exit(status)

    def _run(self, session: pytest.Session) -> int:
        """Whether a test fails."""
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (6 * SECONDS, 6 * SECONDS))
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return 1
        return 0

    def _reap(self, most: int) -> None:
        while len(self.running) > most:
            child, status = os.wait()
            mutant = self.running.pop(child)
            if status == 0:
                self.survivors.append(mutant)
                if self.total > 1:
                    print(mutant, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES, help="of x86tables.delivery")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="mutants whose text has this in it")
    parser.add_argument("--tests", default=",".join(TESTS))
    args = parser.parse_args()
    runner = Runner(args.modules, args.jobs, args.only)
    tests = [str(HERE / f"{name}.py") for name in args.tests.split(",")]
    options = ["-o", "addopts=", "-p", "no:terminal", "-p", "no:xdist", "-p", "no:cacheprovider", "-s"]
    status = pytest.main([*options, *tests], plugins=[runner])
    print(f"{runner.total - 1} mutants, {len(runner.survivors)} survive")
    return int(status) or bool(runner.survivors)


if __name__ == "__main__":
    sys.exit(main())
