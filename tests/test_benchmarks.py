"""The benchmarks: what they count, what they write, and that the guard guards."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import TResponseInputItem
from openai import AsyncOpenAI

from benchmarks import guard, page
from benchmarks.__main__ import main
from benchmarks.bars import appends, batches, cold, imports, late, loop, memory, outbox_loop, reads
from benchmarks.display import bars_markdown
from benchmarks.kinds import OURS, SDK, cached_session
from benchmarks.payload import items, json_bytes, structural_copy
from benchmarks.results import Bar, environment, read_figures
from benchmarks.sites import Site, Sites
from benchmarks.timing import alternate, paired, percentile, spread
from benchmarks.work import WORKS
from benchmarks.work.flaky import identity
from benchmarks.work.memory import hold_conversations
from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator
from tests.pages import ROOT, links
from tests.postgres import Server
from tests.servers import accepts, eventually

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "plots"
KEY = "sk-not-to-be-seen"


@pytest.fixture(name="emulator", scope="module")
def _emulator() -> Iterator[Emulator]:
    """Stands in for a user's own server."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(name="site")
def _site(emulator: Emulator) -> Site:
    return Site(emulator.base_url, "none needed", own=True)


@pytest.fixture(name="bench")
def _bench(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Runs `python -m benchmarks` on the user's own server; returns the figures."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(work: str, *options: str) -> list[Any]:
        line = [work, "--base-url", emulator.base_url, "--output", str(tmp_path)]
        assert main([*line, *options]) == 0
        return read_figures(tmp_path / f"{work}.json")

    return run


def by_session(figures: list[Any], value: str) -> dict[str, Any]:
    """One value of each kind of session."""
    return {figure.session: figure.values[value] for figure in figures}


@pytest.mark.processes
def test_loop_counts_requests(bench: Callable[..., list[Any]]) -> None:
    """Three runs with one tool call: ours creates and appends; the SDK's reads as well."""
    figures = bench("loop", "--runs", "3", "--tools", "1")
    requests = by_session(figures, "requests")
    assert requests[OURS] == 1 + 3 * 3
    assert requests[SDK] == 1 + 3 * 3 + 3
    assert requests["SQLiteSession (memory)"] == requests["SQLiteSession (file)"] == 0
    assert all(len(figure.series["run ms"]) == 3 for figure in figures)


@pytest.mark.processes
def test_reads_hold_the_bare_copy_beside_every_kind(bench: Callable[..., list[Any]]) -> None:
    """Each size and limit has a figure for the bare copy and for each kind of session."""
    figures = bench("reads", "--sizes", "24", "--limits", "0,20", "--rounds", "3")
    assert len(figures) == 2 * 6
    assert {figure.session for figure in figures} >= {"bare structural copy", OURS, SDK}
    assert {figure.parameters["limit"] for figure in figures} == {"all", 20}
    assert {figure.values["calls"] for figure in figures if figure.session != SDK} == {3 * 5}


def test_cold_counts_pages(bench: Callable[..., list[Any]]) -> None:
    """250 items are 13 pages of the SDK's, and three of ours: the ends meet in the third."""
    figures = bench("cold", "--sizes", "250", "--times", "1")
    assert by_session(figures, "requests") == {SDK: 13, OURS: 3}


@pytest.mark.processes
def test_appends_count_batches(bench: Callable[..., list[Any]]) -> None:
    """One request for each call of at most 20 items, from one session and from two at once."""
    figures = bench("appends", "--sizes", "1", "--at-once", "2", "--times", "2")
    for session in (SDK, OURS):
        counts = [figure.values["requests"] for figure in figures if figure.session == session]
        assert counts == [2, 4]


@pytest.mark.processes
def test_memory_is_given_back_by_eviction(bench: Callable[..., list[Any]]) -> None:
    """With a bound the cache keeps some conversations, and no more bytes than the bound."""
    options = ("--conversations", "12", "--sizes", "20", "--bound", "60000")
    everything, bounded = bench("memory", *options)
    assert everything.values["kept"] == 12
    assert 0 < bounded.values["kept"] < 12
    assert bounded.values["counted KB"] <= 60
    assert bounded.values["memory KB"] < everything.values["memory KB"]


def test_crowd_counts_turns(bench: Callable[..., list[Any]]) -> None:
    """Each session makes its conversation, and appends once a turn; hits cost nothing."""
    figures = bench("crowd", "--sessions-at-once", "4", "--turns", "3", "--sessions", "sdk,cached")
    assert by_session(figures, "requests") == {SDK: 4 * (1 + 3 * 2), OURS: 4 * (1 + 3)}


@pytest.mark.processes
def test_flaky_counts_what_is_lost_and_doubled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On emulators of its own: ours loses and doubles nothing where requests fail."""
    line = ["flaky", "--runs", "3", "--rates", "0,0.3", "--latency", "0"]
    assert main([*line, "--output", str(tmp_path), "--seed", "3"]) == 0
    figures = read_figures(tmp_path / "flaky.json")
    assert len(figures) == 4
    for figure in figures:
        if figure.session == OURS or figure.parameters["faults %"] == 0:
            assert figure.values["items lost"] == figure.values["items doubled"] == 0
    assert "30% of the requests fail" in capsys.readouterr().out
    assert (tmp_path / "flaky-doubled.png").read_bytes().startswith(b"\x89PNG")


def test_a_users_server_is_left_as_it_was(
    bench: Callable[..., list[Any]], emulator: Emulator
) -> None:
    """What a benchmark makes on a user's server is deleted again."""
    before = emulator.store.ids()
    bench("loop", "--runs", "1", "--tools", "0", "--sessions", "sdk,cached")
    bench("cold", "--sizes", "30", "--times", "1")
    assert emulator.store.ids() == before


async def test_bars_leave_a_users_server_as_it_was(emulator: Emulator) -> None:
    """The loops that are held against ours, and their yardsticks, are deleted there as well."""
    before = emulator.store.ids()
    site = Site(emulator.base_url, "none needed", own=False)
    await loop(site, runs=2, latency=0, times=1)
    await outbox_loop(site, runs=2, latency=0, times=1)
    await reads(site, size=2, large=2, few=1, rounds=1)
    await appends(site, size=2, times=1)
    assert emulator.store.ids() == before


def test_files_say_where_and_not_whose(bench: Callable[..., list[Any]], tmp_path: Path) -> None:
    """The JSON names versions, and no host, user, path or key."""
    bench("loop", "--runs", "1", "--tools", "0", "--sessions", "cached")
    text = (tmp_path / "loop.json").read_text(encoding="utf-8")
    found = json.loads(text)["environment"]
    assert found == environment()
    assert found["packages"]["openai-agents"]
    assert found["python"].endswith(platform.python_version())
    for secret in (KEY, platform.node(), str(Path.home()), str(ROOT), str(tmp_path)):
        assert not secret or secret not in text
    assert "| CachedSession | " in (tmp_path / "loop.md").read_text(encoding="utf-8")


@pytest.mark.processes
def test_emulators_end_with_the_benchmark() -> None:
    """An emulator is a process of its own, one a latency, and ends when the benchmark does."""
    with Sites() as sites:
        site = sites.at()
        port = int(re.search(r":(\d+)/", site.base_url)[1])  # type: ignore[index]
        assert sites.at() is site
        assert accepts(port)
    assert not accepts(port)


def test_help_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` names each benchmark with its options."""
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in (*WORKS, "all", "bars"):
        assert re.search(rf"\b{name}\b", text)
    for option in ("--sizes", "--runs", "--rates", "--only", "--base-url"):
        assert option in text


@pytest.mark.parametrize(
    "options",
    [
        ["nothing"],
        ["reads", "--sizes", "ten"],
        ["loop", "--latency", "-1"],
        ["loop", "--sessions", "sdk,paper"],
        ["bars", "--only", "luck"],
    ],
    ids=" ".join,
)
def test_a_wrong_line_is_refused(options: list[str]) -> None:
    """What the command line cannot mean is said before anything is measured."""
    with pytest.raises(SystemExit) as error:
        main(options)
    assert error.value.code == 2


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as on POSIX")
def test_interrupted_benchmark() -> None:
    """Ctrl-C reaches a benchmark and not its emulator: one line, and the status of interrupts."""
    # As at a terminal: a shell has what it starts in the background ignore the interrupt.
    heeding = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from benchmarks.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", heeding, "loop", "--runs", "300"]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            # Begun, and not only forked: in between nobody could end it yet.
            eventually(
                lambda: any("emulator" in name for name in map(_command, _children(process.pid)))
            )
            # As a terminal does: to all of the foreground's group.
            os.killpg(process.pid, signal.SIGINT)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert error == "python -m benchmarks: interrupted\n"


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("loop", "--runs", "0"),
        ("flaky", "--runs", "0"),
        ("memory", "--conversations", "0"),
        ("cold", "--times", "0"),
    ],
)
def test_numbers_that_cannot_be(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that leaves nothing to do is refused by the option's name."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert arguments[-2].lstrip("-") in error


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (99, 99), (100, 100)]
)
def test_percentiles(percent: float, expected: int) -> None:
    """A percentile is one of the values: the smallest that so many do not exceed."""
    assert percentile(range(100, 0, -1), percent) == expected


def test_spread_names_its_unit() -> None:
    """Percentiles carry their unit in the name."""
    assert spread([0.001, 0.002, 0.003]) == {"p50 ms": 2.0, "p95 ms": 3.0, "p99 ms": 3.0}


async def test_actions_are_timed_in_turn() -> None:
    """Each has its turn in each round, after one call that does not count."""
    calls = ""

    def action(name: str) -> Callable[[], Any]:
        async def call() -> None:
            nonlocal calls
            calls += name

        return call

    taken = await alternate({"a": action("a"), "b": action("b")}, rounds=2, calls=2)
    assert calls == "ab" + "aabb" * 2
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 4, "b": 4}


def test_turns_are_held_against_each_other() -> None:
    """What slows both, for some turns or for most, does not change the ratio; nor does one end."""
    # As on a processor whose other half is busy in all turns but one, which one side misses.
    ours = [3.0, 3.3] * 4 + [2.0, 2.0] + [3.1, 3.0]
    other = [6.3, 6.0] * 4 + [4.0, 4.0] + [6.0, 4.1]
    assert paired(ours, other, calls=2) == 0.5
    assert paired([2.0, 4.0, 9.0], [1.0, 2.0, 1.0]) == 2.0


async def test_time_ends_the_rounds() -> None:
    """Where the time is over, three rounds are made all the same."""

    async def nothing() -> None:
        pass

    taken = await alternate({"a": nothing}, rounds=50, seconds=0)
    assert len(taken["a"]) == 3


def test_payload_is_stored_and_told_apart(emulator: Emulator) -> None:
    """The items are those of an agent with a tool, no two alike, and the copy is a copy."""
    sent = items(12)
    assert len(set(map(identity, sent))) == 12
    copied = structural_copy(sent)
    assert copied == sent
    copied[3]["content"][0]["text"] = "changed"
    assert copied != sent
    assert json_bytes([{"a": "ä"}]) == len('{"a":"ä"}'.encode())


async def test_held_reads_are_hits(site: Site, emulator: Emulator) -> None:
    """The bars on reads measure reads that ask nobody."""
    emulator.clear_log()
    bars = await reads(site, size=40, large=120, few=4, rounds=5)
    assert [bar.most for bar in bars] == [1.15, 1.5, 1.1, 0.2]
    listings = [request for request in emulator.requests if request.method == "GET"]
    # Three first reads: of 40, of 120 (the ends meet at once) and of 20 items.
    assert len(listings) == 1 + 3 + 1


async def test_cold_reads_count_requests(site: Site) -> None:
    """The bar on requests is exact: 300 items are 15 pages of the SDK's and five of ours."""
    time_bar, request_bar, cpu_bar = await cold(site, size=300, latency=0, times=1)
    assert request_bar.measured == pytest.approx(5 / 15)
    assert "5 against 15" in request_bar.workload
    assert min(time_bar.measured, cpu_bar.measured) > 0


async def test_long_appends_count_requests(site: Site) -> None:
    """The bar on appends is one call of so many items."""
    [bar] = await appends(site, size=20, times=1)
    assert "1 request;" in bar.workload


async def test_loop_bars(site: Site, emulator: Emulator) -> None:
    """The loop is held against as many bare requests as it makes itself."""
    emulator.clear_log()
    bars = await loop(site, runs=2, latency=0, times=1)
    assert [bar.unit for bar in bars] == ["%", "%"]
    assert "for 7 bare requests" in bars[0].workload
    posts = [request for request in emulator.requests if request.method == "POST"]
    # Ours, the bare ones, and the loop that sends its appends bare.
    assert len(posts) == 3 * 7


async def test_outbox_bar(site: Site) -> None:
    """The loop with an outbox is held against SQLite on file, with both yardsticks beside it."""
    [bar] = await outbox_loop(site, latency=0, runs=2, times=1)
    assert bar.most == 1.1
    assert bar.measured > 0
    assert re.search(r"\d+ requests; .* `flush\(\)` takes .* table of SQLite", bar.workload)


async def test_batches_are_counted(site: Site) -> None:
    """What is appended at once leaves in full batches; the first one may go before it is full."""
    requests, left = await batches(site, appends=200, size=3)
    assert requests.most == 1.05
    assert requests.measured in (30 / 30, 31 / 30)
    assert "requests for 600 items" in requests.workload
    assert left.unit == "bytes"


async def test_late_runs(site: Site) -> None:
    """The bar on late runs names both stretches."""
    [bar] = await late(site, runs=14, early=2, limit=4, times=1)
    assert "runs 5 to 14" in bar.workload
    assert "runs 2 to 11" in bar.workload


async def test_memory_bars(site: Site) -> None:
    """Memory is within its bars even where little is held, and the count is right."""
    per_byte, counted = await memory(site, conversations=10, size=40)
    assert per_byte.met
    assert counted.met


async def test_holding_drops_the_sessions(site: Site) -> None:
    """What is measured is what the cache alone holds."""
    held = await hold_conversations(site, conversations=3, size=8)
    assert (held.conversations, held.items) == (3, 24)
    assert held.traced > held.json > 0


@pytest.mark.processes
async def test_imports_are_measured_in_new_processes() -> None:
    """The bar on the import has both figures."""
    [bar] = await imports(times=1)
    assert 0 < bar.measured < 5000
    assert "`import agents` itself" in bar.workload


@pytest.mark.processes
async def test_bars_of_a_fleet(site: Site, postgres: Server) -> None:
    """What is counted is as it has to be, and what is timed is timed, on an engine."""
    from benchmarks import fleet

    bars = [
        *await fleet.steady(site, postgres, rounds=3),
        *await fleet.appends(site, postgres, rounds=3),
        *await fleet.cold(site, postgres, size=40, times=1),
    ]
    assert all(bar.met for bar in bars if bar.unit), bars
    assert [bar.measured > 0 for bar in bars if not bar.unit] == [True, True]


def test_bars_say_whether_they_are_met() -> None:
    """Small ratios are fractions, shares have their sign, and a bar not met says so."""
    bars = [
        Bar("w", measured, 0.2, "x", unit)
        for measured, unit in ((0.1, ""), (0.9, ""), (0.2, "%"), (0.3, "ms"))
    ]
    assert [bar.shown for bar in bars] == ["1/10.00", "0.90", "0.2 %", "0 ms"]
    assert [bar.met for bar in bars] == [True, False, True, False]
    assert [bar.bar for bar in bars] == ["at most 1/5"] * 2 + ["at most 0.2 %", "at most 0.2 ms"]
    assert bars_markdown(bars).count("| no |") == 2


class Slow(CachedSession):
    """Takes twice the time and CPU for what it does, and now and then a request too many."""

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """As much work again as the read took."""
        started, cpu = time.perf_counter(), time.process_time()
        read = await super().get_items(limit)
        waste(time.perf_counter() - started, time.process_time() - cpu)
        return read

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """As much work again as the append took, and a copy that is thrown away."""
        cpu = time.process_time()
        await super().add_items(items)
        waste(0.0, time.process_time() - cpu)
        await self.refresh()


def waste(seconds: float, cpu: float) -> None:
    """Works for nothing."""
    started, cpu_started = time.perf_counter(), time.process_time()
    # A read that is answered from memory is all work, and time is the finer clock.
    while (
        time.perf_counter() - started < min(seconds, cpu * 2)
        or time.process_time() - cpu_started < cpu
    ):
        pass


def slow_session(client: AsyncOpenAI, conversation_id: str | None = None) -> Slow:
    """What the guard has to notice."""
    return Slow(
        conversation_id=conversation_id, openai_client=client, cache=ConversationCache(1 << 30)
    )


async def checks_of(group: AsyncIterator[Bar]) -> dict[str, Bar]:
    """The checks of one group, by name."""
    return {check.work: check async for check in group}


@pytest.mark.processes
async def test_guard_notices_slow_reads(site: Site) -> None:
    """Reads that take twice as long are too much; the one against itself is not."""
    checks = await checks_of(guard.reads(site, slow_session))
    assert not checks["get_items() of 500 held / bare copy"].met
    assert not checks["get_items(20) of 3,000 held / bare copy"].met


@pytest.mark.processes
async def test_guard_notices_slow_writes_and_first_reads(site: Site) -> None:
    """Appends and first reads that take twice the CPU are too much."""
    checks = await checks_of(guard.wire(site, slow_session))
    assert len(checks) == 2
    assert not any(check.met for check in checks.values())


async def test_guard_notices_requests_too_many(site: Site) -> None:
    """A session that forgets its copy after each append is noticed by its requests alone."""
    checks = await checks_of(guard.requests(site, slow_session))
    assert checks["requests of a first read of 1,000"].met
    assert not checks["requests of 5 runs with one tool call"].met
    checks = await checks_of(guard.requests(site, cached_session))
    assert all(check.met for check in checks.values())


def test_guard_notices_half_as_much_again() -> None:
    """The bounds of the guard are near enough to what is usual."""
    source = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| ([0-9.]+) \| ([0-9.]+) \|$", source, re.MULTILINE)
    assert len(rows) == 9
    for name, usual, most in rows:
        assert f"{name}" in (ROOT / "benchmarks" / "guard.py").read_text(encoding="utf-8")
        assert 1.1 < float(most) / float(usual) <= 1.5, name


@pytest.mark.parametrize(
    ("measured", "status"),
    [
        ([(0.9, 0.9)], 0),
        ([(1.1, 0.9), (1.1, 0.9), (1.1, 0.9)], 1),
        ([(1.1, 0.9), (0.9, 1.1)], 0),
        ([(1.1, 1.1), (0.9, 1.1), (0.9, 1.1)], 1),
    ],
)
def test_guard_fails_what_is_too_much_each_time(
    measured: list[tuple[float, float]],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is too much is measured up to twice more, and fails if it is too much each time."""
    turns = iter(measured)

    async def measure(_: object) -> list[Bar]:
        reads, wire = next(turns)
        return [Bar("reads", reads, 1.0), Bar("wire", wire, 1.0)]

    monkeypatch.setattr(guard, "measure", measure)
    monkeypatch.setattr(Sites, "at", lambda _: None)
    assert main(["guard"]) == status
    assert not list(turns)
    assert "reads" in capsys.readouterr().out


def test_what_was_found_comes_into_the_pages(
    bench: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`page` puts each table between its marks, in every page, and leaves the rest as it is."""
    pages = [tmp_path / "one.md", tmp_path / "two.md"]
    pages[0].write_text("a\n<!-- loop -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
    pages[1].write_text("<!-- web -->\nold\n<!-- end -->\n", encoding="utf-8")
    for name, value in (("RESULTS", tmp_path), ("PAGES", pages), ("PLOTS", tmp_path / "plots")):
        monkeypatch.setattr(page, name, value)
    (tmp_path / "plots").mkdir()
    bench("loop", "--runs", "31", "--tools", "0", "--sessions", "cached")
    assert main(["page"]) == 0
    table = (tmp_path / "loop.md").read_text(encoding="utf-8")
    assert pages[0].read_text(encoding="utf-8") == (
        f"a\n<!-- loop -->\n\n{table}\n<!-- end -->\nb\n"
    )
    assert pages[1].read_text(encoding="utf-8") == "<!-- web -->\nold\n<!-- end -->\n"
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        path.name for path in tmp_path.glob("*.png")
    }


def test_page_shows_every_plot() -> None:
    """Every plot in the folder is on the page, and none is missing."""
    shown = {Path(link).name for link in links(PAGE) if link.endswith(".png")}
    assert shown == {path.name for path in PLOTS.glob("*.png")}
    assert shown
