"""The command line: `cached-session demo` and `cached-session serve`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agents import TResponseInputItem

from cached_session import CachedSession, SQLiteOutbox
from cached_session.commands.cli import COMMANDS, main
from cached_session.commands.demo import command
from cached_session.commands.demo.comparison import histories_differ, inputs_differ
from cached_session.commands.demo.loop import LoopResult
from cached_session.emulator import Emulator
from tests.answers import answer_as_model

# A demo that takes milliseconds, still over real HTTP.
QUICK = ("demo", "--runs", "7", "--latency", "0")

# A run with one tool call makes 3 appends; the first one makes the conversation as well.
OUR_REQUESTS = 1 + 3 * 7

# The SDK's session lists the whole conversation first, 20 items a page. A run
# leaves 4 items, each third one 6, so the runs begin with 0, 4, 8, 14, 18, 22
# and 28 items. The first read is of a conversation that it has just made.
SDK_REQUESTS = 1 + 3 * 7 + (1 + 1 + 1 + 1 + 1 + 2 + 2)


@pytest.fixture(name="service")
def _service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Stands in for the real service, where the openai client looks by itself."""
    with Emulator() as emulator:
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-stand-in")
        yield emulator


def table(output: str) -> dict[str, tuple[str, ...]]:
    """Reads the closing table: the cells behind each row's name."""
    rows = [line.strip("│┃| \n") for line in output.splitlines() if re.match("[│┃|]", line)]
    cells = [tuple(cell.strip() for cell in re.split("[│┃|]", row)) for row in rows]
    return {name: rest for name, *rest_ in cells if (rest := tuple(rest_))}


def test_demo_shows_both_sessions_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo counts the requests of both, and says that both came to the same."""
    assert main(QUICK) == 0
    captured = capsys.readouterr()
    rows = table(captured.out)
    assert rows["requests"] == (str(SDK_REQUESTS), str(OUR_REQUESTS))
    assert rows["history on the server"] == ("32 items", "the same")
    assert rows["model inputs"] == ("14 calls", "the same")
    for row in ("total time", "first run", "last run"):
        assert all(re.fullmatch(r"\d+\.\d\d s", cell) for cell in rows[row])
    assert captured.err == ""


def test_demo_counts_what_the_server_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are those of the server's own log: nothing goes past the counting client."""
    emulators: list[Emulator] = []
    started = Emulator.start

    def start(emulator: Emulator) -> None:
        emulators.append(emulator)
        started(emulator)

    monkeypatch.setattr(Emulator, "start", start)
    assert main(QUICK) == 0
    paths = [(entry.method, entry.path) for entry in emulators[0].requests]
    begins = [at for at, sent in enumerate(paths) if sent == ("POST", "/v1/conversations")]
    # Two conversations to warm up with, then one for each loop. Each loop ends with a
    # listing of the 32 items (two pages) and the conversation's deletion.
    assert begins[3] - begins[2] - 3 == SDK_REQUESTS
    assert len(paths) - begins[3] - 3 == OUR_REQUESTS


def test_demo_without_a_terminal_prints_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal, progress is a line now and then, without control characters."""
    assert main(("demo", "--runs", "12", "--latency", "0")) == 0
    output = capsys.readouterr().out
    assert "CachedSession: run 10 of 12, 31 requests" in output
    assert "CachedSession: run 12 of 12, 37 requests" in output
    assert "\x1b" not in output


def test_demo_draws_the_times(capsys: pytest.CaptureFixture[str]) -> None:
    """Each run's time is drawn with characters, and no line is wider than the console."""
    assert main((*QUICK, "--plot")) == 0
    output = capsys.readouterr().out
    drawn, _, legend = output[output.index("(s)") :].partition("Legend:")
    assert drawn.count("o") == 7
    assert re.findall(r"⠤(\w)⠤ (\w+)", legend) == [
        ("x", "OpenAIConversationsSession"),
        ("o", "CachedSession"),
    ]
    assert all(len(line) <= 80 for line in drawn.splitlines())
    assert "\x1b" not in output


@pytest.mark.long
def test_demo_draws_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With matplotlib the same is drawn into a PNG file."""
    path = tmp_path / "times.png"
    assert main((*QUICK, "--png", str(path))) == 0
    assert str(path) in capsys.readouterr().out.replace("\n", "")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_demo_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where a file of the plot is asked for and cannot be made, that is said at once."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    assert main((*QUICK, "--png", str(tmp_path / "times.png"))) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pip install matplotlib" in captured.err


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_demo_on_a_terminal_draws_bars() -> None:
    """On a terminal, two bars move while the loops run."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cached_session", *QUICK],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        output = b""
        # Linux reports the end of the other side as an error.
        with open(ours, "rb", buffering=0) as screen:
            try:
                while part := screen.read(4096):
                    output += part
            except OSError:
                pass
    assert process.returncode == 0
    text = output.decode()
    assert "━" in text
    assert "7/7" in text
    assert "the same" in text


class Forgetful(CachedSession):
    """A session that loses the tools' outputs."""

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        await super().add_items(
            [item for item in items if item.get("type") != "function_call_output"]
        )


class Stammering(CachedSession):
    """A session that keeps all and hands out the last item twice."""

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        items = await super().get_items(limit)
        return items + items[-1:]


def test_demo_fails_when_the_histories_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session that loses an item makes the demo fail and say where."""
    monkeypatch.setattr(command, "CachedSession", Forgetful)
    assert main(QUICK) == 1
    captured = capsys.readouterr()
    assert table(captured.out)["history on the server"] == ("32 items", "DIFFERENT")
    assert "history on the server: item 3 of 32: a function_call_output against" in captured.err


def test_demo_fails_when_the_model_inputs_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right on the server is not enough: what the model was given counts, too."""
    monkeypatch.setattr(command, "CachedSession", Stammering)
    assert main(QUICK) == 1
    captured = capsys.readouterr()
    rows = table(captured.out)
    assert rows["history on the server"] == ("32 items", "the same")
    assert rows["model inputs"] == ("14 calls", "DIFFERENT")
    assert "the two sessions differ: model inputs: call 3" in captured.err


def result(history: list[Any], inputs: list[list[Any]]) -> LoopResult:
    return LoopResult("kind", history=history, inputs=inputs)


@pytest.mark.parametrize(
    ("left", "right", "difference"),
    [
        ([{"id": "a", "text": "x"}], [{"id": "b", "text": "x"}], None),
        ([{"text": "x"}], [{"text": "y"}], "item 1 of 1: a message against a message"),
        ([{"type": "reasoning"}], ["x"], "item 1 of 1: a reasoning against a str"),
        ([{"text": "x"}], [{"text": "x"}] * 2, "1 items against 2"),
        ([{"call_id": "a"}], [{"call_id": "b"}], "item 1 of 1: a message against a message"),
        ([], [], None),
    ],
)
def test_comparison_leaves_out_ids_and_nothing_else(
    left: list[Any], right: list[Any], difference: str | None
) -> None:
    """Ids may differ; everything else, order and number may not."""
    assert histories_differ(result(left, []), result(right, [])) == difference
    inputs = None if difference is None else f"call 1, {difference}"
    assert inputs_differ(result([], [left]), result([], [right])) == inputs


def test_comparison_counts_the_model_calls() -> None:
    """A call more or less is a difference, too."""
    assert inputs_differ(result([], [[]]), result([], [[], []])) == "1 calls against 2"


def test_live_demo_replays_the_real_model(
    service: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --live the model is asked in one loop only; thoughts and tool calls arrive in both."""
    calls = answer_as_model(service)
    assert main(("demo", "--live", "--model", "some-model", "--runs", "3")) == 0
    rows = table(capsys.readouterr().out)
    assert rows["history on the server"] == ("21 items", "the same")
    assert rows["model inputs"] == ("6 calls", "the same")
    assert [call["model"] for call in calls] == ["some-model"] * 6
    assert service.store.ids() == ()


def test_live_demo_needs_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key nothing is started, and the message names the variable."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(("demo", "--live"))
    assert stopped.value.code == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err


def test_live_demo_says_why_the_service_refused(
    service: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal ends the demo with its message and exit status 1, without a traceback."""
    # The emulator knows no model: its answer is 404.
    assert main(("demo", "--live", "--runs", "1")) == 1
    error = capsys.readouterr().err
    assert error.startswith("cached-session demo: stopped by NotFoundError")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("bake",), "bake"),
        (("demo", "--runs", "0"), "at least 1"),
        (("demo", "--runs", "many"), "at least 1"),
        (("demo", "--latency", "-1"), "0 or more"),
        (("demo", "--latency", "nan"), "0 or more"),
        (("demo", "--latency", "soon"), "0 or more"),
        (("demo", "--model", "m"), "--live"),
        (("demo", "--live", "--latency", "1"), "--latency"),
    ],
)
def test_wrong_command_line_is_explained(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong command line ends with status 2 and a message that names what is wrong."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [("demo", ".[cli]"), ("serve", ".[emulator]")],
)
def test_missing_extra_is_named(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without what an extra brings, the message says how to install it: from a checkout."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main((name,)) == 1
    error = capsys.readouterr().err
    assert "is not installed" in error
    assert re.findall("pip install .*", error) == [f'pip install "{hint}"']
    assert main((name, "--help")) == 0
    output = capsys.readouterr().out
    assert COMMANDS[name].summary in output
    assert f'pip install "{hint}"' in output


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` names each command and what it does."""
    with pytest.raises(SystemExit) as stopped:
        main(("--help",))
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert name in output
        assert entry.summary in output


def test_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends with the status that shells know and one line, without a traceback."""

    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "main", interrupt)
    assert main(("demo",)) == 130
    assert capsys.readouterr().err == "cached-session: interrupted\n"


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("outbox", "--help"), ("outbox", "list", "FILE")]
)
def test_what_needs_no_sdk_does_not_load_it(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The version, the help and the list of an outbox are there without a second of imports."""
    file = tmp_path / "agent.db"
    outbox = SQLiteOutbox(file)
    asyncio.run(opened(outbox))
    given = [str(file) if argument == "FILE" else argument for argument in arguments]
    code = (
        "import sys\n"
        "from cached_session.commands.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print('loaded:', 'agents' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: False"


async def opened(outbox: SQLiteOutbox) -> None:
    """Makes the outbox's file."""
    await outbox.transact(lambda log: None)
    await outbox.aclose()


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--latency", "nan"),
        ("serve", "--latency", "inf"),
        ("demo", "--latency", "nan"),
    ],
)
def test_numbers_that_cannot_be(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that leaves nothing to do, or is none, is refused by the option's name."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert arguments[-2].lstrip("-") in error


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be asked to terminate")
def test_serve_is_the_emulator_with_its_options() -> None:
    """`serve` starts the emulator, passes its options on and ends when asked to."""
    script = Path(sys.executable).with_name("cached-session")
    with subprocess.Popen(
        [str(script), "serve", "--port", "0", "--trace"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()
            answer = httpx2.post(
                f"{base_url}/conversations",
                json={},
                headers={"Authorization": "Bearer any"},
                trust_env=False,
            )
            assert answer.json()["object"] == "conversation"
            assert "POST" in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_demo_takes_no_proxy_to_the_emulator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy from the environment must not stand before the emulator. One run is one run."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert main(("demo", "--runs", "1", "--latency", "0")) == 0
    assert capsys.readouterr().out.startswith("1 run with a scripted model")


@pytest.mark.parametrize("arguments", [("--help",), ("--port", "x"), ("--latency", "-1")])
def test_serve_is_called_by_its_name(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The usage of `serve` is that of the command that was given."""
    with pytest.raises(SystemExit):
        main(("serve", *arguments))
    captured = capsys.readouterr()
    assert (captured.out + captured.err).startswith("usage: cached-session serve ")
