"""The public names and their signatures, as text: `python -m tests.public_api` writes it anew.

The text is `tests/public_api.txt`, so that a reviewer sees what a change does to users.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

PAGE = Path(__file__).with_suffix(".txt")

# Whose names are public. Beyond `__all__`: what an extra brings, which `import *` leaves out.
MODULES = {
    "cached_session": ("Instrumented", "PostgresOutbox", "__version__", "instrument"),
    "cached_session.emulator": (),
    "cached_session.testing": (),
}


def text() -> str:
    """All public names, module by module, in alphabetical order."""
    return "\n".join(line for module in MODULES for line in _module(module)) + "\n"


def names(module: str) -> list[str]:
    """A module's public names."""
    return sorted([*importlib.import_module(module).__all__, *MODULES[module]])


def _module(name: str) -> Iterator[str]:
    yield f"# {name}"
    yield ""
    module = importlib.import_module(name)
    for one in names(name):
        value = getattr(module, one)
        if inspect.isclass(value):
            yield from _class(one, value)
        elif inspect.isfunction(value):
            yield f"def {one}{_signature(value)}"
        elif isinstance(value, types.UnionType):
            yield f"{one} = {' | '.join(part.__name__ for part in value.__args__)}"
        else:
            yield f"{one}: {type(value).__name__.strip('_')}"
    yield ""


def _class(name: str, value: type) -> Iterator[str]:
    bases = [base.__name__ for base in value.__bases__ if base is not object]
    yield f"class {name}({', '.join(bases)})" if bases else f"class {name}"
    if issubclass(value, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in value)
        return
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            required = field.default is field.default_factory is dataclasses.MISSING
            yield f"    {field.name}: {field.type}{'' if required else ' = ...'}"
    elif hasattr(value, "_fields"):
        yield from (f"    {field}" for field in value._fields)
    elif Protocol not in value.__bases__ and any("__init__" in vars(base) for base in _own(value)):
        yield f"    def __init__{_signature(value.__init__)}"
    own = {
        name: inspect.getattr_static(value, name)
        for base in _own(value)
        for name in vars(base)
        if not name.startswith("_") or name in ("__aenter__", "__aexit__", "__bool__")
    }
    for member, found in sorted(own.items()):
        if isinstance(found, property):
            yield f"    {member}: property"
        elif isinstance(found, classmethod | staticmethod):
            yield f"    @{type(found).__name__}"
            yield f"    def {member}{_signature(found.__func__)}"
        elif inspect.isroutine(found):
            kind = "async def" if inspect.iscoroutinefunction(found) else "def"
            yield f"    {kind} {member}{_signature(found)}"


def _own(value: type) -> list[type]:
    """The classes that a class is made of, as far as they are this package's."""
    return [base for base in value.__mro__ if base.__module__.startswith("cached_session")]


def _signature(value: Callable[..., object]) -> str:
    # Without the quotes around annotations, and what says where a default is in memory.
    plain = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(value)))
    return re.sub(r"<function (\w+) at \w+>", r"\1", plain)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
