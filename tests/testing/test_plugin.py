"""The pytest plugin, in the test suites of strangers."""

from __future__ import annotations

import inspect
import os
import sys
import tomllib
from pathlib import Path

import pytest
from agents import set_tracing_disabled

from cached_session import RetryPolicy
from cached_session.testing import Requests, set_testing
from cached_session.testing.faults import _KINDS
from tests.pages import ROOT, blocks, table_below

pytest_plugins = ["pytester"]

ASYNCIO = ("-p", "pytest_asyncio.plugin")
ANYIO = ("-p", "anyio.pytest_plugin")
OURS = ("-p", "cached_session.testing.plugin")
STRICT = ("--strict-markers", "--strict-config", "-W", "error", "-p", "no:cacheprovider")
PAGE = ROOT / "docs" / "testing.md"

HEADER = """
import pytest
from cached_session.testing import append, creation, deletion
"""

LOST = """
@pytest.mark.conversations_faults(append(2).loses_its_answer())
async def test_lost(cached_session, conversations_emulator):
    await cached_session.add_items([{"role": "user", "content": "one"}])
    await cached_session.add_items([{"role": "user", "content": "two"}])
    items = conversations_emulator.items(cached_session.session_id)
    assert [item["content"][0]["text"] for item in items] == ["one", "two"]
    assert [str(one.fault) for one in conversations_emulator.requests if one.fault] == [
        "reset_after_commit"
    ]
"""

DIRECT = """
async def test_direct(conversations_client, cached_session):
    await cached_session.add_items([{"role": "user", "content": "one"}])
    page = await conversations_client.conversations.items.list(cached_session.session_id)
    assert len(page.data) == 1
"""

AUTO = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
IN_STRICT_MODE = "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\n"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the plugins that a test names, and no proxy on the way to this machine."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def marked(source: str, mark: str) -> str:
    """The same tests, each with a mark."""
    return source.replace("async def test", f"{mark}\nasync def test")


@pytest.mark.parametrize("scope", ["function", "module", "session"])
def test_asyncio_in_strict_mode(pytester: pytest.Pytester, scope: str) -> None:
    """With pytest-asyncio in strict mode the fixtures work, and are closed in the test's loop."""
    pytester.makeini(IN_STRICT_MODE)
    mark = f"@pytest.mark.asyncio(loop_scope={scope!r})"
    pytester.makepyfile(HEADER + marked(LOST + DIRECT, mark))
    pytester.runpytest_inprocess(*ASYNCIO, *OURS, *STRICT).assert_outcomes(passed=2)


def test_asyncio_in_auto_mode(pytester: pytest.Pytester) -> None:
    """With pytest-asyncio in auto mode a test needs no mark, beside anyio's plugin as well."""
    pytester.makeini(AUTO)
    pytester.makepyfile(HEADER + LOST + DIRECT)
    result = pytester.runpytest_inprocess(*ASYNCIO, *ANYIO, *OURS, *STRICT)
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("also", [(), ASYNCIO], ids=["alone", "beside pytest-asyncio"])
def test_anyio(pytester: pytest.Pytester, also: tuple[str, ...]) -> None:
    """With anyio's plugin the fixtures work, beside pytest-asyncio in strict mode, too."""
    if also:
        pytester.makeini(IN_STRICT_MODE)
    backend = "\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    pytester.makepyfile(HEADER + backend + marked(LOST + DIRECT, "@pytest.mark.anyio"))
    pytester.runpytest_inprocess(*also, *ANYIO, *OURS, *STRICT).assert_outcomes(passed=2)


def test_anyio_on_trio(pytester: pytest.Pytester) -> None:
    """On another event loop than asyncio's a test is told what to do."""
    pytester.makepyfile(
        HEADER
        + "\n@pytest.fixture\ndef anyio_backend():\n    return 'trio'\n"
        + marked(DIRECT, "@pytest.mark.anyio")
    )
    result = pytester.runpytest_inprocess(*ANYIO, *OURS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*sessions run on asyncio: let your fixture anyio_backend*"])


def test_without_a_plugin_for_coroutines(pytester: pytest.Pytester) -> None:
    """A plain test runs its own event loop, and the fixtures ask for no other plugin."""
    pytester.makepyfile(
        """
        import asyncio

        def test_plain(cached_session, conversations_emulator):
            asyncio.run(cached_session.add_items([{"role": "user", "content": "one"}]))
            assert len(conversations_emulator.items(cached_session.session_id)) == 1
        """
    )
    pytester.runpytest_inprocess(*OURS, *STRICT).assert_outcomes(passed=1)


def test_an_emulator_of_the_projects_own(pytester: pytest.Pytester) -> None:
    """The marker and test mode hold for an emulator that the project has made for all its tests."""
    pytester.makeini(AUTO)
    pytester.makeconftest(
        """
        import pytest
        from cached_session.emulator import Emulator

        @pytest.fixture(scope="session")
        def conversations_emulator():
            with Emulator() as emulator:
                yield emulator
        """
    )
    pytester.makepyfile(
        HEADER
        + """
from cached_session.testing import is_testing

@pytest.mark.conversations_faults(append(1).fails())
async def test_marked(cached_session):
    assert is_testing()
    await cached_session.add_items([{"role": "user", "content": "a"}])
    assert cached_session.stats.retries == 1

async def test_not_marked(cached_session):
    assert is_testing()
    await cached_session.add_items([{"role": "user", "content": "a"}])
    assert cached_session.stats.retries == 0
"""
    )
    pytester.runpytest_inprocess(*ASYNCIO, *OURS, *STRICT).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("conversations_faults(append(1).fails())", "*append(1)*did not happen*"),
        ("conversations_faults()", "*it names no fault*"),
        ("conversations_faults", "*it names no fault*"),
        ("conversations_faults('append')", "*conversations_faults: *"),
    ],
)
def test_a_marked_test_without_our_fixtures(
    mark: str, words: str, pytester: pytest.Pytester
) -> None:
    """A marker is heard in a test that asks for no fixture of ours: it would show nothing."""
    pytester.makepyfile(f"{HEADER}\n@pytest.mark.{mark}\ndef test_plain():\n    assert True\n")
    result = pytester.runpytest_inprocess(*OURS, *STRICT)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([words])


def test_who_sends_nothing_is_told_why(pytester: pytest.Pytester) -> None:
    """Where a marked test has no fixture of ours, the error says that, and which there are."""
    mark = "@pytest.mark.conversations_faults(append(1).fails())\n"
    pytester.makepyfile(
        f"{HEADER}\n{mark}def test_without():\n    pass\n"
        f"\n{mark}def test_with(conversations_client):\n    pass\n"
    )
    result = pytester.runpytest_inprocess(*OURS, *STRICT)
    result.assert_outcomes(passed=2, errors=2)
    said = "the test asks for none of the fixtures conversations_emulator, conversations_client"
    # Where pytest finds that it runs for a CI, its summary repeats all of each error.
    errors, _, _ = result.stdout.str().partition("short test summary info")
    assert errors.count(said) == 1


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("append(3).loses_its_answer()", "*append(3) suffers reset_after_commit: did not happen; "
         "there were 2 requests*"),
        ("deletion().fails()", "*deletion() suffers error_before_commit: never happened; *"),
        ("append(1).suffers('partial_batch')", "*append(1) suffers partial_batch: did not*"),
    ],
)  # fmt: skip
def test_a_fault_that_does_not_happen_is_an_error(
    pytester: pytest.Pytester, sentence: str, words: str
) -> None:
    """A test whose fault never happens shows nothing, and is in error, unless it says so."""
    pytester.makeini(AUTO)
    with_it = f"append(2).loses_its_answer(), {sentence}"
    source = HEADER + LOST.replace("append(2).loses_its_answer()", with_it)
    lenient = source.replace(sentence, f"{sentence}, assert_all_happened=False")
    pytester.makepyfile(test_strict=source, test_lenient=lenient)
    result = pytester.runpytest_inprocess(*ASYNCIO, *OURS, *STRICT)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines([words])


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [("pytest.skip('no')", "skipped"), ("pytest.xfail('no')", "xfailed"), ("assert 0", "failed")],
)
def test_a_test_that_left_lacks_nothing(
    ending: str, outcome: str, pytester: pytest.Pytester
) -> None:
    """A test that is skipped in its middle, or fails, is not in error for what did not happen."""
    pytester.makepyfile(
        f"{HEADER}\n@pytest.mark.conversations_faults(append(2).loses_its_answer())\n"
        f"def test(conversations_emulator):\n    {ending}\n"
    )
    pytester.runpytest_inprocess(*OURS, *STRICT).assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize(
    ("ending", "outcome"), [("pytest.skip('no')", "skipped"), ("assert 0", "errors")]
)
def test_a_test_that_never_began_lacks_nothing(
    ending: str, outcome: str, pytester: pytest.Pytester
) -> None:
    """Where a fixture of its own skips a test, or fails, nothing is said of what did not happen."""
    pytester.makepyfile(
        f"{HEADER}\n@pytest.fixture\ndef other():\n    {ending}\n"
        "\n@pytest.mark.conversations_faults(append(1).fails())\n"
        "def test(conversations_client, other):\n    pass\n"
    )
    pytester.runpytest_inprocess(*OURS, *STRICT).assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("append(2)", "*must be a sentence such as*not append(2)*"),
        ("'append'", "*must be a sentence such as*not str*"),
        ("assert_all=False", "*assert_all is no argument of the marker*"),
    ],
)
def test_a_wrong_marker_is_told_of(pytester: pytest.Pytester, arguments: str, words: str) -> None:
    """A marker that says nothing to the plugin is an error, with what it should have been."""
    pytester.makepyfile(
        f"{HEADER}\n@pytest.mark.conversations_faults({arguments})\n"
        "def test(conversations_emulator):\n    pass\n"
    )
    result = pytester.runpytest_inprocess(*OURS, *STRICT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])


def test_marks_of_class_and_function_add_up(pytester: pytest.Pytester) -> None:
    """A class's mark and a test's count together, and anew in each test."""
    pytester.makeini(AUTO)
    pytester.makepyfile(
        HEADER
        + """
@pytest.mark.conversations_faults(creation(1).fails(503))
class TestAgent:
    @pytest.mark.conversations_faults(append(1, 2).is_rate_limited(retry_after=60))
    @pytest.mark.parametrize("number", [1, 2])
    async def test_both(self, cached_session, conversations_emulator, number):
        await cached_session.add_items([{"role": "user", "content": "one"}])
        assert len(conversations_emulator.items(cached_session.session_id)) == 1
        assert cached_session.stats.retries == 3
"""
    )
    pytester.runpytest_inprocess(*ASYNCIO, *OURS, *STRICT).assert_outcomes(passed=2)


def test_missing_extra(pytester: pytest.Pytester) -> None:
    """Without what the emulator needs, the fixture names the extra to install."""
    pytester.makeconftest("import sys\nsys.modules['h11'] = None\n")
    pytester.makepyfile("def test(cached_session):\n    pass\n")
    result = pytester.runpytest_subprocess(*OURS, *STRICT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*pip install "cached-session?emulator?"*'])


def installed(directory: Path) -> None:
    """Makes the package found as an installed one in a directory, by its own entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = directory / "cached_session-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cached-session\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[pytest11]\n"
        + "".join(f"{name} = {to}\n" for name, to in project["entry-points"]["pytest11"].items())
    )


HEAVY = r"^(openai|agents|httpx2?|starlette|h11|pytest_asyncio|anyio|cached_session\..+)(\.|$)"

OTHERS_OFF = tuple(
    part
    for name in ("asyncio", "anyio", "xdist", "xdist.looponfail", "hypothesispytest")
    for part in ("-p", f"no:{name}")
)

STRANGER = f"""
import re, sys

def pytest_configure(config):
    print("ours:", config.pluginmanager.has_plugin("cached_session"))

def pytest_sessionfinish():
    print("\\nloaded:", *sorted(name for name in sys.modules if re.search({HEAVY!r}, name)))
"""


@pytest.mark.parametrize("options", [(), ("-p", "no:cached_session")], ids=["", "switched off"])
def test_who_does_not_use_it_is_left_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Installed and not used, the plugin loads nothing but itself, warns of nothing, and may go."""
    installed(pytester.path)
    paths = [str(pytester.path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    pytester.makeconftest(STRANGER)
    pytester.makepyfile("def test_stranger():\n    pass\n")
    result = pytester.runpytest_subprocess(*STRICT, *OTHERS_OFF, *options, "-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"ours: {not options}"])
    ours = "" if options else " cached_session.testing cached_session.testing.plugin"
    result.stdout.fnmatch_lines([f"loaded:{ours}"])


def test_a_program_that_has_imported_the_package(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that starts pytest itself, and has imported the package before, is not warned."""
    installed(pytester.path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), str(ROOT)]))
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    test = pytester.makepyfile("def test_stranger():\n    pass\n")
    arguments = ["-W", "error", *OTHERS_OFF, str(test)]
    program = f"import cached_session, pytest, sys; sys.exit(pytest.main({arguments!r}))"
    result = pytester.run(sys.executable, "-W", "error", "-c", program)
    assert result.ret == 0


def test_markers_are_listed(pytester: pytest.Pytester) -> None:
    """`pytest --markers` tells of the marker, and `--fixtures` of the fixtures."""
    markers = pytester.runpytest_inprocess(*OURS, "--markers")
    markers.stdout.fnmatch_lines(["@pytest.mark.conversations_faults(*"])
    fixtures = pytester.runpytest_inprocess(*OURS, "--fixtures")
    for name in ("conversations_emulator", "conversations_client", "cached_session"):
        fixtures.stdout.fnmatch_lines([f"{name}*"])


def test_the_page(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests on the page pass as they stand there, and would not if one waited."""
    # Longer than any deadline: whoever waited would fail.
    monkeypatch.setattr(RetryPolicy, "delay", lambda *_: 1000.0)
    pytester.makeini(AUTO)
    tests = [block for block in blocks(PAGE, "python") if "def test_" in block.text]
    pytester.makepyfile(**{f"test_line_{block.line}": block.text for block in tests})
    # The variable is read when the SDK is imported, which it has been.
    set_tracing_disabled(True)
    try:
        result = pytester.runpytest_inprocess(*ASYNCIO, *OURS, *STRICT)
    finally:
        set_tracing_disabled(False)
    written = [line for block in tests for line in block.text.splitlines() if "def test_" in line]
    result.assert_outcomes(passed=len(written))


def test_tables_of_the_page() -> None:
    """The page has a row for each fixture, subject, verb and argument, and no other."""
    verbs = [name for name, member in vars(Requests).items() if inspect.isfunction(member)]
    rows = {
        "## Fixtures": ["conversations_emulator", "conversations_client", "cached_session"],
        "## Faults": [*_KINDS],
        "`append(2)` is the second append that the server sees, `append(1, 3)` the first and the "
        "third, `append()` each one. A request that is the repeat of another counts like any "
        "other.": [name for name in verbs if not name.startswith("_")],
        "It is a switch of its own, for tests without the fixture, and for other limits:": [
            *inspect.signature(set_testing).parameters
        ],
    }
    for heading, names in rows.items():
        assert sorted(table_below(PAGE, heading)) == sorted(names)
