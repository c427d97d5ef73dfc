"""The package as it is imported, and `python -m cached_session.emulator`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

import cached_session.emulator
from cached_session.emulator import Emulator
from cached_session.emulator.__main__ import main
from tests.emulator.clients import post_conversation
from tests.emulator.gate import PATIENCE
from tests.servers import free_port

ROOT = Path(cached_session.emulator.__file__).parents[2]


def run_alone(code: str) -> str:
    """Runs code with the emulator and nothing else of cached_session, and returns its output."""
    stand_in = (
        "import sys, types\n"
        "package = types.ModuleType('cached_session')\n"
        f"package.__path__ = [{str(ROOT / 'cached_session')!r}]\n"
        "sys.modules['cached_session'] = package\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", stand_in + code],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_package_needs_no_server_to_be_imported() -> None:
    """Without Starlette the package imports; asking for the emulator says what to install."""
    code = (
        "sys.modules['starlette'] = None; sys.modules['h11'] = None\n"
        "from cached_session.emulator import Service, Faults, Habits\n"
        "try:\n    from cached_session.emulator import Emulator\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert 'pip install ".[emulator]"' in run_alone(code)


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that the package does not have is reported as usual."""
    with pytest.raises(AttributeError):
        _ = cached_session.emulator.no_such_name


def test_emulator_imports_nothing_from_the_rest() -> None:
    """Importing and using the emulator loads no other module of cached_session, and no openai."""
    code = (
        "from cached_session.emulator import Emulator\n"
        "with Emulator(): pass\n"
        "import cached_session.emulator.__main__\n"
        "print([n for n in sys.modules if n.startswith(('cached_session.', 'openai', 'agents'))"
        " and not n.startswith('cached_session.emulator')])\n"
    )
    assert run_alone(code) == "[]"


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_line_serves_until_it_is_stopped(number: signal.Signals) -> None:
    """`python -m cached_session.emulator` prints its URL, traces, and ends well on a signal."""
    port = free_port()
    command = [sys.executable, "-W", "error", "-m", "cached_session.emulator"]
    command += ["--port", str(port), "--trace", "--habit", "ids_rewritten"]
    command += ["--faults", "locked=1", "--seed", "7"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/v1\n"
        answer = post_conversation(f"http://127.0.0.1:{port}/v1")
        assert answer.json()["error"]["code"] == "conversation_locked"
        line = process.stdout.readline()
        assert line == "POST   /v1/conversations -> 400, items: 0  [locked]\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--faults", "nonsense=1"], "nonsense"),
        (["--faults", "locked=2"], "more than 1"),
        (["--habit", "nonsense"], "not one of the habits"),
        (["--habit", "rewrites=loudly"], "not one of nul, crlf"),
        (["--habit", "largest_page=0"], "between 1 and 100"),
        (["--port", "70000"], "65535"),
        (["--latency", "-1"], "negative"),
        (["--latency", "nan"], "finite"),
        (["--latency", "inf"], "finite"),
        (["--host", ""], "empty"),
    ],
)
def test_command_line_refuses_what_cannot_be(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option ends with status 2 and says why."""
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_command_line_says_that_the_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """A taken port ends with status 1 and one line."""
    with Emulator() as emulator:
        assert main(["--port", str(httpx2.URL(emulator.base_url).port)]) == 1
    assert capsys.readouterr().err.startswith("cannot listen: ")
