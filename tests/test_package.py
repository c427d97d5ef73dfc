"""What is installed: which names, which files, which dependencies, and what an import loads."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import pydoc
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cached_session
from tests import public_api

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cached_session"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# What each extra's modules may import beside the dependencies. Who loads the plugin is pytest, and
# pytest-asyncio has come there by itself.
THERE = ("cached_session", "pytest", "pytest_asyncio")
# What no extra brings, and where it is asked for: the command says what to install.
ASKED_FOR = {"plots.py": "matplotlib"}
ROOMS = {
    "emulator": ("emulator",),
    "commands": ("cli", "emulator"),
    "testing": ("emulator",),
    "telemetry": ("otel",),
    "postgres": ("postgres",),
    "ciphers": ("encryption",),
}


def python(code: str, *arguments: str, cwd: Path | None = None) -> str:
    """What a new Python prints that runs this code; its warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def distributions(requirements: list[str]) -> set[str]:
    """The names of what is required."""
    return {re.split(r"[^A-Za-z0-9-]", requirement)[0].lower() for requirement in requirements}


def test_public_names_are_those_that_are_written_down() -> None:
    """Whoever changes a public name or signature changes `tests/public_api.txt`, too."""
    assert public_api.text() == public_api.PAGE.read_text(encoding="utf-8"), (
        "the public API is another than tests/public_api.txt says. If that is meant: "
        "python -m tests.public_api, and a line in CHANGELOG.md"
    )


@pytest.mark.parametrize("module", public_api.MODULES)
def test_public_names_are_documented(module: str) -> None:
    """Every public class and function has a docstring of its own."""
    for name in public_api.names(module):
        value = getattr(sys.modules[module], name)
        if isinstance(value, type) or hasattr(value, "__code__"):
            assert vars(value).get("__doc__") or "" if isinstance(value, type) else value.__doc__, (
                f"{module}.{name}"
            )


def test_the_api_page_has_every_public_name() -> None:
    """The site's API page shows each public name of the package, and none that is not there."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: cached_session\.(\w+)$", text, re.M))
    # The union of events and what is called with one; the protocol of outboxes; the number.
    apart = {"Event", "Observer", "Outbox", "__version__"}
    assert shown | apart == {*public_api.names("cached_session"), "testing"}
    members = re.findall(r"members: \[(.+)\]", text)[-1]
    assert sorted(members.split(", ")) == public_api.names("cached_session.testing")


def test_every_page_is_in_the_site() -> None:
    """The site's navigation has each page of `docs/` once."""
    site = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert sorted(re.findall(r'"([a-z-]+\.md)"', site)) == pages


@pytest.mark.processes
def test_a_star_import_needs_no_extra() -> None:
    """`from cached_session import *`, and `help`, work without psycopg, which an extra brings."""
    code = (
        "import sys, pydoc\n"
        "sys.modules['psycopg'] = None\n"
        "from cached_session import *\n"
        "import cached_session\n"
        "pydoc.render_doc(cached_session)\n"
        "try:\n    cached_session.PostgresOutbox\n"
        "except ImportError as error:\n    print(CachedSession.__name__, '|', error)\n"
    )
    name, _, error = python(code).partition(" | ")
    assert name == "CachedSession"
    assert "cached-session[postgres]" in error


@pytest.mark.processes
@pytest.mark.parametrize(
    ("module", "needs", "names"),
    [
        ("cached_session", "psycopg", {"PostgresOutbox"}),
        # The SDK itself cannot be imported where that is missing, in some of its releases.
        ("cached_session", None, {"Instrumented", "instrument"}),
        ("cached_session.emulator", "starlette", {"Emulator", "create_app"}),
        ("cached_session.emulator", "h11", {"Emulator", "create_app"}),
    ],
)
def test_what_an_extra_brings_is_listed(module: str, needs: str | None, names: set[str]) -> None:
    """`dir` lists what an extra brings where it is installed, and nothing that cannot be had."""
    code = (
        "import importlib, inspect, sys\n"
        f"{{}}module = importlib.import_module({module!r})\n"
        "inspect.getmembers(module)\n"
        "print(*dir(module))\n"
    )
    assert set(python(code.format("")).split()) >= names
    if needs is not None:
        missing = f"sys.modules[{needs!r}] = None\n"
        assert not set(python(code.format(missing)).split()) & names


def test_help_tells_of_what_extras_bring() -> None:
    """`help(cached_session)` names what an extra brings, and the extra."""
    text = pydoc.plain(pydoc.render_doc(cached_session))
    for name in ("PostgresOutbox", "postgres", "instrument", "Instrumented", "otel"):
        assert f"`{name}`" in text


@pytest.mark.processes
def test_importing_the_package_loads_nothing_else() -> None:
    """`import cached_session` loads no other module of it, and none of any other package."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import cached_session\n"
        "cached_session.__version__, dir(cached_session)\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('cached_session.')))\n"
    )
    assert python(code) == "cached_session"


# How many modules of this package a session loads. It may only fall: each costs about a
# millisecond, and is one more that a reader of a traceback meets.
MODULES = 31


@pytest.mark.processes
def test_a_session_loads_few_modules() -> None:
    """`CachedSession` loads what it uses beside the SDK, and nothing of the extras."""
    code = (
        "import sys, agents\n"
        "before = set(sys.modules)\n"
        "from cached_session import CachedSession\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    loaded = python(code).split()
    own = [name for name in loaded if name.partition(".")[0] == "cached_session"]
    assert len(own) <= MODULES, own
    others = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert others == {"cached_session", "cachetools", "msgspec"}
    rooms = {name.split(".")[1] for name in own if "." in name}
    assert not rooms & {"commands", "emulator", "testing"}
    assert "cached_session.session.telemetry" not in own


def test_what_is_imported_is_declared() -> None:
    """Each module imports packages that pyproject.toml names, for everybody or in its extra."""
    homes = importlib.metadata.packages_distributions()
    for path in sorted(PACKAGE.rglob("*.py")):
        known = distributions(PROJECT["dependencies"])
        for room, extras in ROOMS.items():
            if room in path.relative_to(PACKAGE).with_suffix("").parts:
                for extra in extras:
                    known |= distributions(PROJECT["optional-dependencies"][extra])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                named = [node.module or ""]
            else:
                continue
            for name in {one.partition(".")[0] for one in named}:
                if name not in {*sys.stdlib_module_names, *THERE, ASKED_FOR.get(path.name)}:
                    assert known & {home.lower() for home in homes[name]}, f"{path}: {name}"


@pytest.mark.processes
def test_the_wheel_has_the_product_alone(tmp_path: Path) -> None:
    """It has the package, typed, with its schema; it asks for no server, no plots and no tests."""
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    wheel = tmp_path / python(build, str(tmp_path), cwd=ROOT).splitlines()[-1]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(archive.read(metadata))
    information = metadata.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {"cached_session", information}
    assert {"cached_session/py.typed", "cached_session/outbox/postgres/schema.sql"} <= set(names)
    kept = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    assert kept <= set(names)
    assert said["Version"] == cached_session.__version__
    for_all = [one for one in said.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert distributions(for_all) == {
        *("aiohappyeyeballs", "anyio", "cachetools", "httpcore2", "httpx2", "msgspec"),
        *("openai", "openai-agents", "tenacity"),
    }


def targets(text: str) -> set[str]:
    """The names in a text that are separated by spaces or commas."""
    return set(re.findall(r"[a-z][a-z-]+", text))


def test_workflows_run_what_a_change_has_to_pass() -> None:
    """What `.ci/run` runs, the workflow runs, by make targets, on every version named."""
    run = re.findall(r"^(?:now|did) (.+)$", (ROOT / ".ci/run").read_text("utf-8"), re.M)
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    rest = re.search(r"^        target: \[(.+)\]$", workflow, re.M)
    assert run
    assert rest is not None
    commands = set(re.findall(r"^      - run: (.+)$", workflow, re.M))
    assert all(command.startswith("make ") for command in commands)
    alone = {command.removeprefix("make ") for command in commands} - {"${{ matrix.target }}"}
    assert targets(" ".join(run)) <= targets(rest[1]) | alone
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert phony is not None
    assert targets(rest[1]) | alone <= set(phony[1].split())
    versions = re.search(r"^        python: \[(.+)\]$", workflow, re.M)
    assert versions
    matrix = set(re.findall(r"\d\.\d+", versions[1]))
    named = {one.rpartition(" ")[2] for one in PROJECT["classifiers"] if ":: 3." in one}
    assert named <= matrix
    assert PROJECT["requires-python"].removeprefix(">=") in matrix


def test_a_release_is_built_checked_attested_and_published_without_a_token() -> None:
    """Each step of a release waits for the one before, and no token or password is kept for it."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    jobs = re.findall(r"^  (\w+):$", workflow.partition("\njobs:\n")[2], re.M)
    assert jobs == ["ci", "build", "attest", "publish"]
    assert re.findall(r"needs: (\w+)", workflow) == jobs[:-1]
    assert "secrets." not in workflow
    assert "password" not in workflow
