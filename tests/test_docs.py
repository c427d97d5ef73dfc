"""What the pages say is so: blocks run, commands exist, tables and links are right."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from benchmarks.__main__ import main as benchmarks
from cached_session import (
    CachedSession,
    ConversationCache,
    MemoryOutbox,
    PostgresOutbox,
    RetryPolicy,
    Sending,
    SQLiteOutbox,
)
from cached_session.commands.cli import COMMANDS, main
from cached_session.emulator import Emulator, FaultKind, Habits
from cached_session.emulator.app import RESET_PATH
from cached_session.outbox.sqlite import schema
from tests.answers import answer_as_model
from tests.pages import PAGES, ROOT, blocks, headings, links, table_below
from tests.postgres import Server

README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
EMULATOR_PAGE = ROOT / "docs" / "emulator.md"
OUTBOX_PAGE = ROOT / "docs" / "outbox.md"
FLEET_PAGE = ROOT / "docs" / "fleet.md"
WEB_PAGE = ROOT / "docs" / "web.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PATIENCE = 120.0

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(name="environment")
def _environment() -> Iterator[dict[str, str]]:
    """The environment of a reader whose service is on this machine."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with Emulator() as emulator:
        answer_as_model(emulator)
        yield kept | {
            "OPENAI_BASE_URL": emulator.base_url,
            "OPENAI_API_KEY": "sk-stand-in",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            "PYTHONPATH": str(ROOT),
        }


def succeed(arguments: list[str], environment: dict[str, str], directory: Path) -> str:
    """Runs Python with warnings as errors, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


@pytest.mark.processes
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_python_blocks_run(
    page: Path, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every Python block of a page runs as it is written, from top to bottom, without a warning."""
    if any("DATABASE_URL" in block.text for block in blocks(page, "python")):
        # Skipped where there is no server.
        postgres: Server = request.getfixturevalue("postgres")
        environment["DATABASE_URL"] = postgres.new_database()
    succeed(["-m", "tests.pages", str(page)], environment, tmp_path)


SHOWN = {
    "agent_with_tools": "6 items, 6 requests, none of them to read",
    "observing": 'cached_session_reconciliations_total{cached_session_reconciliation_result="all"',
    "lost_answers": "an answer was lost; of 1 items the server had 1",
    "two_workers": "refresh() forgets the copy: one, two, three (1 requests)",
}


@pytest.mark.processes
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_examples_run(example: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Every example runs alone and without a key, without a warning, and shows its point."""
    del environment["OPENAI_API_KEY"]
    output = succeed([str(example)], environment, tmp_path)
    assert SHOWN[example.stem] in output
    if example.stem == "lost_answers":
        theirs, ours = re.findall(r"items on the server: (\d+), different ones: (\d+)", output)
        assert int(theirs[0]) > int(theirs[1]) == 40
        assert ours == ("40", "40")


@each_page
def test_blocks_have_a_known_language(page: Path) -> None:
    """No block escapes the tests by a language that they do not know."""
    assert {block.language for block in blocks(page)} <= {"python", "sh", "text", "mermaid", "sql"}


@each_page
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of a shell block exists, with the options that it is given."""
    for block in blocks(page, "sh"):
        for line in block.text.splitlines():
            check_command(shlex.split(line), capsys)


def check_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a command does not exist, or does not know one of its options."""
    match words:
        case ["make", target, *variables]:
            assert target in make_targets()
            assert all(variable.startswith("ARGS=") for variable in variables)
        case ["cached-session", "outbox", command, *options]:
            assert_known([command], help_of(["outbox"], capsys))
            assert_known(options, help_of(["outbox", command], capsys))
        case ["cached-session", command, *options]:
            assert command in COMMANDS
            assert_known(options, help_of([command], capsys))
        case [("python" | "python3.12"), "-m", "cached_session.emulator", *options]:
            assert_known(options, help_of(["serve"], capsys))
        case ["curl", "-X", "POST", url]:
            assert url.endswith(RESET_PATH)
        case ["docker", "build", "-f", file, *_]:
            assert (ROOT / file).exists()
        case ["docker", "run", *options]:
            image = options.index("conversations-emulator")
            assert_known(options[image + 1 :], help_of(["serve"], capsys))
        case [("python" | "python3.12"), "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case ["export", *assignments]:
            settings = {assignment.partition("=")[0] for assignment in assignments}
            assert settings <= {
                *("OPENAI_BASE_URL", "OPENAI_API_KEY", "CHAT_MODEL"),
                "DATABASE_URL",
            }
        case ["uvicorn", app, "--app-dir", directory, *options]:
            assert (ROOT / directory / app.replace(":app", ".py")).exists()
            known = {name for parameter in uvicorn.main.params for name in parameter.opts}
            assert {option for option in options if option.startswith("--")} <= known
        case ["python", "-m", "benchmarks", *options]:
            assert_known(options, help_of([], capsys, benchmarks))
        case ["pip", "install", what, *more]:
            assert not more or (more[0] == "-r" and (ROOT / more[1]).exists())
            assert set(re.findall(r"\[(.+)\]", what)) <= set(project()["optional-dependencies"])
        case _:
            pytest.fail(f"the tests do not know the command {words}")


def assert_known(options: list[str], text: str) -> None:
    """Fails if an option, or a word that only a list of choices knows, is not in a help text."""
    for option in options:
        if option.startswith("--"):
            assert re.search(rf"{option}\b", text), f"{option} is not an option"
        elif re.fullmatch("[a-z_]+", option):
            assert option in text, f"{option} is not a choice"


def help_of(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    program: Callable[[list[str]], int] = main,
) -> str:
    """What a command says about itself."""
    with pytest.raises(SystemExit):
        program([*arguments, "--help"])
    return capsys.readouterr().out


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    return set(phony[1].split())


def project() -> dict[str, Any]:
    """The project's table of pyproject.toml."""
    found: dict[str, dict[str, Any]] = tomllib.loads(
        (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    return found["project"]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """A link within the project names a file that exists, and a heading that exists."""
    for link in links(page):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in headings(path), link


@pytest.mark.parametrize(
    ("page", "heading", "callable_"),
    [
        (REFERENCE, "### Arguments", CachedSession),
        (REFERENCE, "### RetryPolicy", RetryPolicy),
        (REFERENCE, "### ConversationCache", ConversationCache),
        (EMULATOR_PAGE, "## In a test", Emulator),
        (OUTBOX_PAGE, "### SQLiteOutbox", SQLiteOutbox),
        (OUTBOX_PAGE, "### MemoryOutbox", MemoryOutbox),
        (FLEET_PAGE, "### PostgresOutbox", PostgresOutbox),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_tables_of_arguments_agree_with_the_code(page: Path, heading: str, callable_: type) -> None:
    """A table of arguments has every argument, in order, with its default."""
    written = table_below(page, heading)
    parameters = inspect.signature(callable_).parameters
    assert list(written) == list(parameters)
    for name, parameter in parameters.items():
        if isinstance(parameter.default, int | float | None):
            assert written[name] == repr(parameter.default), name


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("## Faults", [str(kind) for kind in FaultKind]),
        ("## Habits", [field.name for field in dataclasses.fields(Habits)]),
    ],
    ids=["faults", "habits"],
)
def test_tables_of_the_emulator_are_complete(heading: str, names: list[str]) -> None:
    """Every fault and every habit has its row, and no row is left over."""
    assert sorted(table_below(EMULATOR_PAGE, heading)) == sorted(names)


def test_tables_of_the_outbox_are_those_of_its_file() -> None:
    """The page names every column of every table of an outbox's file, with its type, in order."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        schema.create(connection)
        [(version,)] = connection.execute("PRAGMA user_version")
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        for (table,) in connection.execute(tables):
            columns = connection.execute(f"PRAGMA table_info({table})")
            written = table_below(OUTBOX_PAGE, f"### Table `{table}`")
            assert list(written.items()) == [(column[1], column[2]) for column in columns]
    source = OUTBOX_PAGE.read_text(encoding="utf-8")
    assert f"`user_version` is {version}" in source
    assert f"`application_id` is {schema.APPLICATION_ID}" in source


def test_states_of_sending_are_those_of_the_package() -> None:
    """The page's table of states has every state of `Sending`, and no other."""
    written = table_below(OUTBOX_PAGE, "## Watching it")
    assert list(written) == [state.value for state in Sending]


def test_errors_in_the_reference_are_those_of_the_package() -> None:
    """The reference's table of errors names every error, and the list of events every event."""
    from cached_session import __all__ as public
    from cached_session import errors, events

    own = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.CachedSessionError)
    }
    # It begins a call anew, and reaches nobody.
    own.remove("Reopened")
    assert own <= set(public)
    assert set(table_below(REFERENCE, "## Errors")) == own - {"CachedSessionError"}
    source = REFERENCE.read_text(encoding="utf-8")
    for event in events.Event.__args__:
        assert f"`{event.__name__}`" in source


@pytest.mark.processes
def test_demo_in_the_readme_is_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """What the README shows of the demo is what the demo prints, times aside."""
    [shown] = blocks(README, "text")
    assert main(["demo", "--latency", "0"]) == 0
    # The times were taken with latency, and are right-aligned.
    time = re.compile(r" *\d+\.\d\d s")
    printed = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "╭│├╰"]
    assert [time.sub(" T", line) for line in shown.text.splitlines()] == [
        time.sub(" T", line) for line in printed
    ]


def test_readme_names_the_lowest_versions() -> None:
    """The versions in the README are those that pyproject.toml asks for."""
    source = README.read_text(encoding="utf-8")
    for requirement in project()["dependencies"]:
        found = re.match(r"(openai(?:-agents)?)>=([0-9.]+)", requirement)
        if found:
            assert f"`{found[1]}` {found[2]} or later" in source
    assert project()["requires-python"] == ">=3.11"
    assert "Python 3.11 or later" in source


def test_extras_that_are_named_exist() -> None:
    """Every extra that a page or the package tells of exists, and brings what a command needs."""
    extras: dict[str, list[str]] = project()["optional-dependencies"]
    sources = [*PAGES, *(ROOT / "cached_session").rglob("*.py")]
    named = {
        name
        for source in sources
        for found in re.findall(r"(?:\.|cached-session)\[([a-z,]+)\]", source.read_text("utf-8"))
        for name in found.split(",")
    }
    assert named <= set(extras)
    assert {"cli", "emulator"} <= named
    for command in COMMANDS.values():
        brought = {
            re.split("[^a-z0-9-]", requirement)[0]
            for extra in {command.extra, *(["emulator"] if command.extra == "cli" else [])} - {""}
            for requirement in extras[extra]
        }
        assert set(command.needs) == brought - {"cached-session"}


def test_what_is_installed_is_the_package_alone() -> None:
    """The wheel has the package and nothing of the benchmarks; the sdist has what tests it."""
    source = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    targets = source["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"] == {"packages": ["cached_session"]}
    assert {"cached_session", "benchmarks", "tests"} <= set(targets["sdist"]["include"])
    assert not list((ROOT / "cached_session").rglob("*bench*"))


def test_web_page_shows_the_whole_example() -> None:
    """The blocks of docs/web.md are the example that the tests serve, from its first import on."""
    source = (ROOT / "examples" / "web" / "app.py").read_text(encoding="utf-8")
    docstring = ast.parse(source).body[0]
    shown = [line for block in blocks(WEB_PAGE, "python") for line in block.text.splitlines()]
    written = source.splitlines()[docstring.end_lineno :]
    assert list(filter(None, shown)) == list(filter(None, written))


def test_pages_name_no_machine() -> None:
    """No page names a path of the machine that it was written on."""
    for page in [*PAGES, *EXAMPLES, ROOT / "Makefile"]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", text), page.name
