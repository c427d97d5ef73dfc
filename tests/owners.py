"""What the rules of this package's own need; `python -m tests.owners` draws the diagram anew."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TypeAlias

from cached_session.core import history, ledger, queue, unsettled
from cached_session.core.ledger import TRANSITIONS, Front

PAGE = Path(__file__).parents[1] / "docs" / "how-it-works.md"

BEGIN, END = "```mermaid\n", "```\n"

# A ledger, and the classes of what it holds.
HELD = {"History": history, "Queue": queue, "Entry": queue, "Unsettled": unsettled, "Batch": ledger}
KINDS = frozenset({"Ledger", *HELD})
LEDGERS = frozenset({"ledger", "_ledger"})

# What changes a list, a dict or a set.
CONTAINERS = frozenset(
    {"append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse"}
    | {"add", "discard", "update", "setdefault", "popitem"}
)

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def mutating() -> frozenset[str]:
    """The methods that change what a ledger holds."""
    found: set[str] = set(CONTAINERS)
    for name, module in HELD.items():
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        node = next(
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and node.name == name
        )
        methods = {node.name: node for node in node.body if isinstance(node, ast.FunctionDef)}
        changes: set[str] = set()
        while more := {
            name
            for name, method in methods.items()
            if name not in changes and _changes_itself(method, changes)
        }:
            changes |= more
        found |= {name for name in changes if not name.startswith("__")}
        # What is computed when it is first asked for is read.
        found -= {name for name, method in methods.items() if method.decorator_list}
    return frozenset(found)


def _changes_itself(method: ast.FunctionDef, changes: Set[str]) -> bool:
    mine = {"self"}

    def own(node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return isinstance(node, ast.Name) and node.id in mine

    for node in ast.walk(method):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and own(node.iter):
            mine.add(node.target.id)
        for target in _targets(node):
            if isinstance(target, ast.Attribute | ast.Subscript) and own(target):
                return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            directly = isinstance(node.func.value, ast.Name)
            verbs = changes if directly else CONTAINERS
            if own(node.func) and node.func.attr in verbs:
                return True
    return False


@functools.cache
def typed(package: Path) -> frozenset[str]:
    """The names of all functions and attributes of a package that give out what a ledger holds."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function) and _is_held(node.returns):
                names.add(node.name)
            # What a ledger holds itself is found by the ledger.
            if (
                isinstance(node, ast.AnnAssign)
                and "core" not in path.parts
                and _is_held(node.annotation)
            ):
                target = node.target
                names.add(target.attr if isinstance(target, ast.Attribute) else ast.unparse(target))
    # What makes or reads one anew gives out one's own.
    return frozenset(names - {"read"} - LEDGERS)


def _is_held(annotation: ast.expr | None) -> bool:
    return annotation is not None and any(
        isinstance(node, ast.Name) and node.id in KINDS for node in ast.walk(annotation)
    )


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to, or deletes."""
    found: list[ast.expr] = []
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            found = targets
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target) | ast.For(target=target):
            found = [target]
    for target in found:
        yield from _parts(target)


def _parts(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from _parts(each)
    else:
        yield target.value if isinstance(target, ast.Starred) else target


def writes(source: str, names: Set[str]) -> Iterator[str]:
    """Where a module writes what a ledger holds, past the ledger's verbs.

    Args:
        source: The module.
        names: Functions and attributes that give out what a ledger holds.
    """
    for function in _functions(ast.parse(source)):
        yield from _Reader(function, names).writes()


def _functions(tree: ast.AST) -> Iterator[Function]:
    """The functions that stand in no other one: what those inside know, they know of these."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node
        else:
            yield from _functions(node)


class _Reader:
    """Follows a ledger, and what it holds, through the names of one function."""

    def __init__(self, function: Function, names: Set[str]) -> None:
        self._function = function
        self._names = names
        self._ledgers: set[str] = set(LEDGERS)
        self._held: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.arg) and _is_held(node.annotation):
                a_ledger = "Ledger" in ast.unparse(node.annotation or node)
                (self._ledgers if a_ledger else self._held).add(node.arg)
        known = -1
        while known < len(self._ledgers) + len(self._held):
            known = len(self._ledgers) + len(self._held)
            for node in ast.walk(function):
                self._follow(node)

    def _follow(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                for target, value in zip(targets, values, strict=True):
                    self._name(target, value)
            case ast.Assign(targets=[target], value=value):
                self._name(target, value)
            case ast.NamedExpr(target=target, value=value) | ast.For(target=target, iter=value):
                self._name(target, value)

    def _name(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            if self._is_ledger(value):
                self._ledgers.add(target.id)
            elif self._is_held(value):
                self._held.add(target.id)

    def _is_ledger(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self._ledgers
            case ast.Attribute(attr=name):
                return name in LEDGERS
        return False

    def _is_held(self, node: ast.expr) -> bool:
        """Whether it is what a ledger holds, or a part of that."""
        match node:
            case ast.Name(id=name):
                return name in self._held
            case ast.Attribute(value=value, attr=name):
                return name in self._names or self._is_ledger(value) or self._is_held(value)
            case ast.Subscript(value=value, slice=place):
                return not isinstance(place, ast.Slice) and self._is_held(value)
            case ast.Await(value=value):
                return self._is_held(value)
            case ast.IfExp(body=body, orelse=otherwise):
                return self._is_held(body) or self._is_held(otherwise)
            case ast.BoolOp(values=values):
                return any(map(self._is_held, values))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                return name in self._names
        return False

    def writes(self) -> Iterator[str]:
        """Each as line and text."""
        for node in ast.walk(self._function):
            if any(map(self._is_written, _targets(node))) or (
                isinstance(node, ast.Call) and self._changes(node)
            ):
                assert isinstance(node, ast.stmt | ast.expr)
                yield f"{node.lineno}: {ast.unparse(node).splitlines()[0]}"

    def _is_written(self, target: ast.expr) -> bool:
        match target:
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                return self._is_ledger(value) or self._is_held(value)
        return False

    def _changes(self, call: ast.Call) -> bool:
        match call:
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[value, *_]):
                return self._is_ledger(value) or self._is_held(value)
            case ast.Call(func=ast.Attribute(value=value, attr=verb)):
                if self._is_ledger(value):
                    return verb.startswith("_")
                return verb in mutating() and self._is_held(value)
        return False


def diagram() -> str:
    """The ledger's table, as Mermaid draws it."""
    lines = ["stateDiagram-v2", f"    [*] --> {Front.NONE.name}"]
    for front, row in TRANSITIONS.items():
        for following in Front:
            events = [event.name for event, state in row.items() if state is following]
            if events:
                lines.append(f"    {front.name} --> {following.name}: {', '.join(events)}")
    return "\n".join(lines) + "\n"


def drawn(page: str) -> str:
    """The diagram that a page shows."""
    return page.partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    """Draws it anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{diagram()}{END}{after}", encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
