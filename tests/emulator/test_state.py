"""Seeds, resets and kept state: what an emulator begins with, and what outlives it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import NotFoundError

from cached_session.emulator import Emulator, Fault, FaultKind, Habits, SnapshotError
from cached_session.emulator.__main__ import main
from cached_session.emulator.requests import is_append
from tests.emulator.clients import connect
from tests.emulator.gate import PATIENCE, Gate
from tests.emulator.samples import INPUT_TYPES, sample
from tests.pages import ROOT
from tests.servers import free_port

SEED: dict[str, Any] = {
    "conversations": [
        {
            "id": "conv_123",
            "created_at": 1700000000,
            "metadata": {"topic": "demo"},
            "items": [
                {"role": "user", "content": "Who wrote Walden?"},
                {"id": "msg_abc", "role": "assistant", "content": "Thoreau."},
            ],
        },
        {"items": [{"type": "item_reference", "id": "msg_abc"}]},
    ]
}


def written(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def reset(base_url: str) -> httpx2.Response:
    """Asks for a reset, without a key."""
    url = base_url.removesuffix("/v1") + "/_emulator/reset"
    return httpx2.post(url, timeout=60, trust_env=False)


def texts(emulator: Emulator, conversation: str) -> list[str]:
    return [item["content"][0]["text"] for item in emulator.items(conversation)]


def test_a_seed(tmp_path: Path) -> None:
    """An emulator begins with a file's conversations: their ids, times, metadata and items."""
    path = written(tmp_path / "seed.json", SEED)
    with Emulator(initial=path) as emulator, connect(emulator) as client:
        found = client.conversations.retrieve("conv_123")
        assert (found.created_at, found.metadata) == (1700000000, {"topic": "demo"})
        assert texts(emulator, "conv_123") == ["Who wrote Walden?", "Thoreau."]
        item: Any = client.conversations.items.retrieve("msg_abc", conversation_id="conv_123")
        assert item.status == "completed"
        other = emulator.store.ids()[1]
        assert texts(emulator, other) == ["Thoreau."]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"conversations": [\n  {"id": conv}]}', "line 2, column 10: not JSON"),
        ('{"conversations": [{"created_at": NaN}]}', "a number in it is none"),
        ([], "the whole: must be an object"),
        ({}, "'conversations' is missing"),
        ({"conversations": {}}, "conversations: must be an array"),
        ({"conversation": []}, "'conversation' is none of version, conversations, items"),
        ({"version": 2, "conversations": []}, "version: must be 1"),
        ({"conversations": [{}, 1]}, r"conversations\[1\]: must be an object"),
        ({"conversations": [{"titel": ""}]}, r"conversations\[0\]: 'titel' is none of id, "),
        ({"conversations": [{"id": 1}]}, r"conversations\[0\].id: must be a string"),
        ({"conversations": [{"id": "a/b"}]}, r"conversations\[0\].id: 'a/b' cannot stand"),
        (
            {"conversations": [{"id": "a"}, {"id": "a"}]},
            r"conversations\[1\].id: conversations\[0\] has it, too",
        ),
        ({"conversations": [{"created_at": -1}]}, r"conversations\[0\].created_at: must be whole"),
        ({"conversations": [{"metadata": {"a": 1}}]}, r"conversations\[0\]: Invalid 'metadata'"),
        (
            {"conversations": [{"items": [{"role": "user"}]}]},
            r"Missing required parameter: 'conversations\[0\].items\[0\].content'",
        ),
        (
            {"conversations": [{"items": [{"id": "x_1", "role": "user", "content": ""}]}]},
            r"Invalid 'conversations\[0\].items\[0\].id': 'x_1'. Expected an ID that begins",
        ),
        (
            {"conversations": [{"items": [{"id": "msg_1"}]}]},
            r"conversations\[0\].items\[0\]: no item before it has the id 'msg_1'",
        ),
        (
            {
                "conversations": [
                    {"items": [{"id": "msg_1", "role": "user", "content": word}]} for word in "ab"
                ]
            },
            r"conversations\[1\].items\[0\].id: conversations\[0\].items\[0\] has it, too",
        ),
        ({"conversations": [], "items": [{"role": "user", "content": ""}]}, "items.*'id'"),
    ],
)
def test_a_wrong_seed(
    value: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A seed that cannot be is refused by file, place and what is wrong, and ends the command."""
    path = written(tmp_path / "seed.json", value)
    with pytest.raises(SnapshotError, match=f"^{path}: .*{words}"):
        Emulator(initial=path)
    assert main(["--initial", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{path}: ")


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed that is missing, and a place where no state can be kept, end the command with 1."""
    missing = tmp_path / "missing" / "file.json"
    for option in ("--initial", "--state"):
        assert main([option, str(missing)]) == 1
        assert str(missing.parent) in capsys.readouterr().err


def test_reset() -> None:
    """A reset goes back to the seed, needs no key, meets no fault, and empties the log."""
    with Emulator(initial=SEED, faults=lambda _: None) as emulator, connect(emulator) as client:
        made = client.conversations.create()
        client.conversations.items.delete("msg_abc", conversation_id="conv_123")
        emulator.faults = lambda _: Fault(FaultKind.HANG)
        answer = reset(emulator.base_url)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        emulator.faults = None
        assert emulator.requests == []
        assert texts(emulator, "conv_123") == ["Who wrote Walden?", "Thoreau."]
        with pytest.raises(NotFoundError):
            client.conversations.retrieve(made.id)
        url = emulator.base_url.removesuffix("/v1") + "/_emulator/reset"
        assert httpx2.get(url, trust_env=False).status_code == 405
        client.conversations.delete("conv_123")
        emulator.reset()
        assert len(emulator.items("conv_123")) == 2


def test_what_comes_late_does_not_come_after_a_reset() -> None:
    """A request that a fault holds back is not carried out on what a reset has put there."""
    gate = Gate()
    late = [Fault(FaultKind.LATE_COMMIT)]
    with (
        Emulator(
            initial=SEED,
            faults=lambda request: late.pop() if late and is_append(request) else None,
            sleep=gate.sleep,
        ) as emulator,
        connect(emulator) as client,
    ):
        item: Any = {"role": "user", "content": "late"}
        with pytest.raises(Exception, match="Connection error"):
            client.conversations.items.create("conv_123", items=[item])
        gate.arrived()
        reset(emulator.base_url)
        handled = threading.Event()
        carry_out = emulator.service.handle_late

        def noted(*given: Any) -> None:
            carry_out(*given)
            handled.set()

        emulator.service.handle_late = noted  # type: ignore[method-assign]
        gate.open()
        assert handled.wait(PATIENCE)
        assert len(emulator.items("conv_123")) == 2


def test_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second emulator on a file is refused, names it, and leaves it alone, until the first stops.

    Also by a link to it, which stays one. Then it goes on with what the first has left.
    """
    path, link = tmp_path / "state.json", tmp_path / "link.json"
    link.symlink_to(path)
    second = Emulator(state=path)
    with Emulator(state=link) as first:
        before = path.stat()
        for refused in (second.start, second.reset, lambda: Emulator(state=path)):
            with pytest.raises(OSError, match="another emulator keeps its state there") as raised:
                refused()
            assert raised.value.filename == str(path)
        assert main(["--state", str(path), "--port", "0"]) == 1
        assert f"{path}: another emulator keeps its state there" in capsys.readouterr().err
        assert path.stat().st_ctime_ns == before.st_ctime_ns
        with connect(first) as client:
            made = client.conversations.create()
    assert link.is_symlink()
    # One that cannot listen has not got it either.
    with Emulator() as busy, pytest.raises(OSError, match="in use"):
        Emulator(state=path, port=int(busy.base_url.split(":")[2].split("/")[0])).start()
    with second:
        assert second.store.ids() == (made.id,)


@pytest.mark.parametrize("there", ["a directory", "another file"])
def test_a_lock_that_cannot_be_made(
    there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What keeps a lock from being made is told as such, and not as another emulator."""
    path, lock = tmp_path / "state.json", tmp_path / "state.json.lock"
    if there == "a directory":
        lock.mkdir()
    else:
        lock.write_text("of somebody's own\n" * 100)
    with pytest.raises(OSError, match="cannot be made a lock") as raised:
        Emulator(state=path)
    assert raised.value.filename == str(lock)
    assert main(["--state", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{lock}: cannot be made a lock (")
    assert lock.exists()
    assert not path.exists()


@pytest.mark.parametrize("habits", [Habits(), Habits(content_left_as_string=True, rewrites="trim")])
def test_state_survives_a_restart(tmp_path: Path, habits: Habits) -> None:
    """Whatever an emulator holds, the next one on its file holds, to the last field."""
    path = tmp_path / "state.json"
    with Emulator(state=path, habits=habits, seed=1) as first, connect(first) as client:
        made = client.conversations.create(metadata={"k": "é\u2028"})
        for kind in INPUT_TYPES:
            whole = {**sample(kind, whole=True), "id": None}
            if whole.get("type") == "item_reference":
                continue
            client.conversations.items.create(made.id, items=[whole])
        [gone] = client.conversations.items.create(
            made.id, items=[{"role": "user", "content": " loose "}]
        ).data
        client.conversations.items.delete(str(gone.id), conversation_id=made.id)
        dropped = client.conversations.create()
        client.conversations.delete(dropped.id)
        before = first.store.snapshot()
    with Emulator(state=path, habits=habits, seed=1) as second, connect(second) as client:
        assert second.store.snapshot() == before
        assert len(before["conversations"][0]["items"]) > 20
        assert len(before["items"]) == 1
        # An item of no conversation can still be referred to, and no id is given twice.
        back: Any = {"type": "item_reference", "id": gone.id}
        client.conversations.items.create(made.id, items=[back])
        assert client.conversations.create().id != made.id
    assert Emulator(initial=path).store.ids() == Emulator(state=path).store.ids()[:2]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["state.json"]


def test_the_state_goes_before_the_seed(tmp_path: Path) -> None:
    """A seed is for the first start; later the state counts, until a reset."""
    path = tmp_path / "state.json"
    with Emulator(initial=SEED, state=path) as emulator, connect(emulator) as client:
        client.conversations.delete("conv_123")
    with Emulator(initial=SEED, state=path) as emulator:
        assert len(emulator.store.ids()) == 1
        reset(emulator.base_url)
    assert "conv_123" in Emulator(state=path).store.ids()


@pytest.mark.parametrize("damage", ["", "{", "cut", '{"conversations": 1}'])
def test_damaged_state(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file is told of at the start, and is left as it is."""
    path = tmp_path / "state.json"
    Emulator(initial=SEED, state=path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage.encode())
    damaged = path.read_bytes()
    assert main(["--state", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{path}: ")
    assert path.read_bytes() == damaged


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A change that cannot be saved is answered with 500; the file keeps what it had, whole."""
    path = tmp_path / "folder" / "state.json"
    path.parent.mkdir()
    with Emulator(initial=SEED, state=path) as emulator, connect(emulator) as client:
        kept = path.read_bytes()
        # A directory stands where the new file would be written.
        in_the_way = path.with_name("state.json.new")
        in_the_way.mkdir()
        with pytest.raises(Exception, match="could not be saved: Is a directory"):
            client.conversations.create()
        assert reset(emulator.base_url).status_code == 500
        assert path.read_bytes() == kept
        in_the_way.rmdir()
        client.conversations.create()
    assert len(Emulator(state=path).store.ids()) == 3


def test_a_service_brings_its_own() -> None:
    """What belongs to a service is not given beside it."""
    service = Emulator().service
    with pytest.raises(ValueError, match="belong to the service"):
        Emulator(service=service, initial=SEED)


def test_the_container_runs_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The Dockerfile's command has options that exist, and its check asks a path that answers."""
    lines = (ROOT / "examples" / "emulator" / "Dockerfile").read_text().splitlines()
    words = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines if line}
    python, module, name, *options = json.loads(words["ENTRYPOINT"]) + json.loads(words["CMD"])
    assert (python, module, name) == ("python", "-m", "cached_session.emulator")
    with pytest.raises(SystemExit) as ended:
        main([*options, "--help"])
    assert ended.value.code == 0
    assert {one for one in options if one.startswith("--")} <= set(capsys.readouterr().out.split())
    check = json.loads(words["HEALTHCHECK"].partition(" CMD ")[2])[2]
    with Emulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        exec(check.replace("http://127.0.0.1:8080", emulator.base_url.removesuffix("/v1")))


AGENT = """
import asyncio
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message
from cached_session import CachedSession

async def main():
    session = CachedSession(conversation_id="conv_123")
    agent = Agent(name="Librarian", model=ScriptedModel([[assistant_message("In 1854.")]]))
    await Runner.run(agent, "When did it appear?", session=session)
    print(len(await session.get_items()))

asyncio.run(main())
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on POSIX")
def test_a_program_that_knows_the_base_url_alone(tmp_path: Path) -> None:
    """A program runs unmodified; a server that was killed goes on where it was."""
    seed, state, port = written(tmp_path / "seed.json", SEED), tmp_path / "state.json", free_port()
    environment = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "anything",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "cached_session.emulator", "--port", str(port)]
    command += ["--initial", str(seed), "--state", str(state)]
    for expected, number in ((4, signal.SIGKILL), (6, signal.SIGTERM)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == f"{environment['OPENAI_BASE_URL']}\n"
            done = subprocess.run(
                [sys.executable, "-c", AGENT],
                env=environment, capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            assert done.stdout == f"{expected}\n"
            server.send_signal(number)
            assert server.wait(PATIENCE) == (0 if number == signal.SIGTERM else -number)


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on POSIX")
def test_it_ends_in_time_while_requests_hang() -> None:
    """SIGTERM ends the command at once, with status 0, though a client waits for an answer."""
    port = free_port()
    command = [sys.executable, "-m", "cached_session.emulator", "--port", str(port)]
    command += ["--faults", "hang=1", "--trace"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        server.stdout.readline()

        def ask() -> None:
            with pytest.raises(httpx2.TransportError):
                httpx2.get(f"http://127.0.0.1:{port}/v1/x", timeout=None, trust_env=False)

        asking = threading.Thread(target=ask)
        asking.start()
        assert "[hang]" in server.stdout.readline()
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
        asking.join(PATIENCE)
        assert not asking.is_alive()
