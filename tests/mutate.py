"""Breaks the code in one place at a time, and sees whether the fast tests notice.

    python -m tests.mutate RESULTS.jsonl [--sample N] [--seed S]
    python -m tests.mutate RESULTS.jsonl --only ID ...
    python -m tests.mutate --list

A mutant is one small change of a file in TESTS. N of all are drawn from the files in
proportion, the same ones for the same seed. Each lies in a copy of the tree and meets
its file's tests in their order there, until the first fails. A verdict is a line of
JSON: who killed the mutant, or null where nobody did. The same command goes on where
it was stopped; a mutant whose line is removed is tried again.

Programs that a change does not reach are compiled once for all, into a cache. Tests
run in forks of a process that has imported JAX and MuJoCo, and started neither.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

_LOOP = ("loop", "acting", "parallel -k among_others", "diverged", "parallel")
_AGENT = ("iq", "sac", "agents", "loop", "config", "probes")
_POLICY = ("policies", "iq", "config", "probes")
_TOYS = "metrics_of or room or divid or identity or statistics_of"
_RANGES = "config -k default or last_number or depend"
TESTS = {
    "iqmjx/loop.py": (f"loop parallel -k {_TOYS}", *_LOOP),
    "iqmjx/evaluation.py": (
        "loop acting diverged -k evaluation or valid or mean",
        *_LOOP,
    ),
    "envs/vector.py": ("vector", f"loop -k {_TOYS}", *_LOOP),
    "iqmjx/replay.py": ("replay", *_LOOP),
    "iqmjx/agents/__init__.py": ("extensions", "config"),
    "iqmjx/agents/base.py": (_RANGES, "agents loop -k average or step_size", *_AGENT),
    "iqmjx/agents/iq.py": (_RANGES, *_AGENT),
    "iqmjx/agents/sac.py": ("sac", *_AGENT),
    "iqmjx/policies/__init__.py": ("extensions", "config"),
    "iqmjx/policies/base.py": ("iq", *_POLICY),
    "iqmjx/policies/multicategorical.py": ("iq", *_POLICY),
    "iqmjx/policies/autoregressive.py": (
        "policies -k autoregressive or conditionals",
        *_POLICY,
    ),
    "iqmjx/policies/conditionals.py": (
        "policies -k autoregressive or conditionals",
        *_POLICY,
    ),
    "iqmjx/policies/flow.py": ("policies -k flow", *_POLICY),
    "iqmjx/policies/spline.py": ("spline", *_POLICY),
    "iqmjx/policies/gaussian.py": ("policies -k gaussian and not tanh", *_POLICY),
    "iqmjx/policies/tanh_gaussian.py": ("sac", "policies -k tanh", *_POLICY),
}
"""The files that are broken, and the tests that each meets, one selection after the
other: first those that are quick and likely to notice."""

LONGEST_TEST = 300
"""Seconds, after which it hangs: ten times what a fast test takes."""

REWRITE = "ignore::pytest.PytestAssertRewriteWarning"  # of what is imported already

_IMPORTED = (
    *("flax.linen", "optax", "orbax.checkpoint", "gymnasium", "mujoco.mjx"),
    *("flowjax.bijections", "scipy.stats"),
)
"""What takes long to import, and does not change."""

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_PAIRS = (
    ("min", "max"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("any", "all"),
    ("sum", "mean"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("floor", "ceil"),
    ("act", "act_greedily"),
)
_NAMES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_UNWRAPPED = ("stop_gradient", "clip", "abs", "relu", "square", "standardize", "copy")
_MESSAGES = ("refuse", "UsageError")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A file with one change."""

    file: str
    id: str  # file:line:column: before -> after
    source: str


def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a file, in its order."""
    source = (ROOT / file).read_bytes()
    starts = list(itertools.accumulate(map(len, source.splitlines(True)), initial=0))
    tree, found = ast.parse(source), {}
    for node, after in _changes(tree):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        place = f"{file}:{node.lineno}:{node.col_offset}"
        name = f"{place}: {_difference(ast.unparse(node), after)}"
        if isinstance(node, ast.expr):
            after = f"({after})"
        changed = (source[:begin] + after.encode() + source[end:]).decode()
        found[ast.dump(ast.parse(changed))] = Mutant(file, name, changed)
    found.pop(ast.dump(tree), None)
    return sorted(found.values(), key=lambda mutant: mutant.id)


def _changes(tree: ast.AST) -> Iterator[tuple[Any, str]]:
    """Nodes, and what stands in their place."""
    for node in _code(tree):
        if isinstance(node, ast.expr):
            for after in _others(node):
                yield node, ast.unparse(after)
        elif isinstance(node, ast.If):
            yield node.test, ast.unparse(_negated(node.test))
        elif isinstance(node, (ast.AugAssign, ast.Expr)):
            yield node, "pass"
        elif isinstance(node, ast.FunctionDef):
            yield from ((each, "pass") for each in _reassigned(node))
        if isinstance(node, ast.AugAssign):
            other = _ARITHMETIC[type(node.op)]()
            yield node, ast.unparse(ast.AugAssign(node.target, other, node.value))


def _difference(before: str, after: str) -> str:
    """`before -> after`, without most of what both begin and end with."""
    parts = [re.findall(r"\w+|\W", text) for text in (before, after)]
    for _ in range(2):  # from the front, and from the back
        equal = [one == other for one, other in zip(*parts, strict=False)]
        same = [*equal, False].index(False)
        parts = [part[max(same - 4, 0) :][::-1] for part in parts]
    return " -> ".join("".join(part) for part in parts)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """What a change can be seen in: no annotations, imports, messages, docstrings."""
    yield node
    for name, child in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for each in child if isinstance(child, list) else [child]:
            if isinstance(each, ast.AST) and not _is_text(each):
                yield from _code(each)


def _is_text(node: ast.AST) -> bool:
    """Docstrings, imports, messages, and definitions of types."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)  # a docstring, or ...
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", None) in _MESSAGES
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp):
        return isinstance(node.value.op, ast.BitOr) and node.col_offset == 0
    kinds = (ast.Import, ast.ImportFrom, ast.Raise, ast.JoinedStr)
    return isinstance(node, kinds)


def _others(node: ast.expr) -> Iterator[ast.expr]:
    """Expressions in the place of an expression."""
    match node:
        case ast.Compare(left, operators, values):
            for index, operator in enumerate(operators):
                other = _COMPARISONS[type(operator)]()
                changed = [*operators[:index], other, *operators[index + 1 :]]
                yield ast.Compare(left, changed, values)
        case ast.BinOp(left, operator, right) if type(operator) in _ARITHMETIC:
            yield ast.BinOp(left, _ARITHMETIC[type(operator)](), right)
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield ast.BoolOp(other, values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Attribute(value, name) if name in _NAMES:
            yield ast.Attribute(value, _NAMES[name])
        case ast.Tuple(elements, ast.Load()):
            for swapped in _swapped(elements):
                yield ast.Tuple(swapped, ast.Load())
        case ast.Call(function, args, keywords):
            name = getattr(function, "attr", getattr(function, "id", None))
            if name in _UNWRAPPED and args:
                yield args[0]
            if name == "where":
                yield ast.Call(function, [args[0], *args[:0:-1]], keywords)
            for swapped in _swapped(args):
                yield ast.Call(function, swapped, keywords)
            for values in _swapped([keyword.value for keyword in keywords]):
                swapped = [
                    ast.keyword(keyword.arg, value)
                    for keyword, value in zip(keywords, values, strict=True)
                ]
                yield ast.Call(function, args, swapped)


def _negated(test: ast.expr) -> ast.expr:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    return ast.UnaryOp(ast.Not(), test)


def _swapped(nodes: list[Any]) -> Iterator[list[Any]]:
    """With two neighbours swapped, the last two that are plain names."""
    for index in reversed(range(len(nodes) - 1)):
        pair = nodes[index : index + 2]
        if all(isinstance(each, (ast.Name, ast.Attribute)) for each in pair):
            yield [*nodes[:index], *pair[::-1], *nodes[index + 2 :]]
            return


def _reassigned(function: ast.FunctionDef) -> Iterator[ast.Assign]:
    """Assignments to names that have a value already, where all can be left out."""
    known = {arg.arg for arg in function.args.args}
    for node in function.body:
        if isinstance(node, ast.Assign):
            walked = [name for target in node.targets for name in ast.walk(target)]
            names = {each.id for each in walked if isinstance(each, ast.Name)}
            if names <= known:
                yield node
            known |= names


def sampled(count: int | None, seed: int) -> list[Mutant]:
    """Mutants of each file in proportion; all of them where no count is given."""
    every = {file: mutants_of(file) for file in TESTS}
    total = sum(map(len, every.values()))
    count = total if count is None else min(count, total)
    chosen, before = [], 0
    for file, mutants in every.items():
        # Rounded so that all together are as many as were asked for.
        upto = before + len(mutants)
        share = round(count * upto / total) - round(count * before / total)
        before = upto
        chosen += random.Random(f"{seed} {file}").sample(mutants, share)
    return chosen


class Noticed:
    """A pytest plugin: the first test that fails; the end of a process that hangs."""

    def __init__(self):
        self.by = None

    def pytest_runtest_logstart(self):
        signal.alarm(LONGEST_TEST)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.by = self.by or report.nodeid

    def pytest_collectreport(self, report):
        if report.failed:
            self.by = self.by or f"{report.nodeid} (when collected)"


class Tree:
    """A copy of the tree, and its tests."""

    def __init__(self, folder: Path):
        self.root = folder / "tree"
        self._log, self._verdict = folder / "log", folder / "verdict"
        ignored = shutil.ignore_patterns(".git", "results", "__pycache__", "runs")
        shutil.copytree(ROOT, self.root, symlinks=True, ignore=ignored)
        os.environ["PYTHONPATH"] = str(self.root)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        cache = f"{tempfile.gettempdir()}/iqmjx_mutants"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for name in ("tests.conftest", *_IMPORTED):  # the first has flags for XLA
            importlib.import_module(name)

    def killer(self, mutant: Mutant, tests: str) -> str | None:
        """Who of a selection of tests notices the change; None: nobody.

        Raises:
            RuntimeError: with what was printed, where tests did not begin.
        """
        path = self.root / mutant.file
        original = path.read_text()
        path.write_text(mutant.source)
        try:
            return self._first_failure(tests)
        finally:
            path.write_text(original)

    def _first_failure(self, tests: str) -> str | None:
        self._verdict.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            try:
                self._test(tests)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it has started
        if os.WIFSIGNALED(status):
            return f"{tests}: {signal.Signals(os.WTERMSIG(status)).name}"
        if not self._verdict.exists():
            raise RuntimeError(self._log.read_text())
        return json.loads(self._verdict.read_text())

    def _test(self, tests: str) -> None:
        """Runs tests in this process, which is of no other use then."""
        os.setsid()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.root)
        sys.path[0] = str(self.root)
        for module in [each for each in sys.modules if each.split(".")[0] == "tests"]:
            del sys.modules[module]
        noticed = Noticed()
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", REWRITE]
        files, _, words = tests.partition(" -k ")
        options += ["-k", words] if words else []
        files = [f"tests/test_{name}.py" for name in files.split()]
        code = pytest.main([*options, *files], plugins=[noticed])
        if code and not noticed.by:
            raise RuntimeError(f"pytest ends with {code}")
        self._verdict.write_text(json.dumps(noticed.by))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="ID")
    parser.add_argument("--meet", type=int, metavar="SELECTIONS")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = sampled(args.sample, args.seed)
    if args.only:
        chosen = [each for each in sampled(None, 0) if each.id in args.only]
    if args.list:
        print(*(mutant.id for mutant in chosen), sep="\n")
        return
    rows: dict[str, dict[str, Any]] = {}
    if args.results.exists():
        for line in args.results.read_text().splitlines():
            row = json.loads(line)
            rows[row["id"]] = row

    def meet(mutant, tests):
        before = rows.get(mutant.id, {"met": 0, "seconds": 0})
        begun = time.monotonic()
        row = {"id": mutant.id, "killed_by": tree.killer(mutant, tests)}
        row["met"] = before["met"] + 1
        row["seconds"] = round(before["seconds"] + time.monotonic() - begun, 1)
        rows[mutant.id] = row
        print(json.dumps(row), flush=True)
        with args.results.open("a") as results:
            results.write(json.dumps(row) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        for met in range(args.meet or max(map(len, TESTS.values()))):
            for mutant in chosen:
                row = rows.get(mutant.id, {"met": 0, "killed_by": None})
                alive = row["met"] == met and row["killed_by"] is None
                if alive and met < len(TESTS[mutant.file]):
                    meet(mutant, TESTS[mutant.file][met])
    killed = sum(rows[mutant.id]["killed_by"] is not None for mutant in chosen)
    print(f"{killed} of {len(chosen)} killed")


if __name__ == "__main__":
    main()
