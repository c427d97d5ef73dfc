"""Prints the lowest supported versions as pip constraints, read from pyproject.toml."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
tested = [extras[name] for name in ("emulator", "cli", "postgres", "encryption", "otel", "test")]
for requirement in [*project["dependencies"], *(one for extra in tested for one in extra)]:
    found = re.match(r"([A-Za-z0-9-]+)(?:\[[a-z]+\])?>=([0-9.]+(?:b[0-9]+)?)", requirement)
    if found:  # the others name this package itself
        print(f"{found[1]}=={found[2]}")
