"""`export`: what waits is written out, and kept."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from cached_session.emulator import Emulator
from tests.outbox_command.support import SECRET, address, apart, do, record, run, told


def test_export_writes_what_waits(
    file: Path, emulator: Emulator, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The waiting items come out as JSON lines, in order, byte for byte as they were recorded."""
    items = [b'{"role":"user","content":"1"}', '{"n":1.0,"ü":"\x7f"}'.encode()]
    do(file, lambda log: log.store.accept(address(emulator, "conv_1"), items, 1.0))
    assert run("export", file, 1) == 0
    assert capfdbinary.readouterr().out == b"".join(item + b"\n" for item in items)
    assert [row.items for row in do(file, lambda log: log.summaries())] == [2]


def test_export_makes_a_file_of_its_own(
    file: Path, emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is made by it is for its owner alone, and one that exists is left as it is."""
    record(file, address(emulator, "conv_1"), SECRET)
    output = tmp_path / "items.jsonl"
    assert run("export", file, 1, "--output", output) == 0
    written = output.read_bytes()
    assert json.loads(written)["content"] == SECRET
    assert SECRET not in capsys.readouterr().out
    if sys.platform != "win32":
        assert stat.S_IMODE(output.stat().st_mode) == 0o600
    record(file, address(emulator, "conv_1"), "more")
    assert run("export", file, 1, "--output", output) == 1
    told(capsys, str(output), "exists already")
    assert output.read_bytes() == written
    assert run("export", file, 1, "--output", tmp_path / "no" / "where") == 1
    told(capsys, "No such file or directory")


def test_export_to_the_standard_output_by_its_sign(
    file: Path,
    emulator: Emulator,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--output -` is the standard output, not a file of that name."""
    monkeypatch.chdir(tmp_path)
    item = b'{"role":"user","content":"1"}'
    do(file, lambda log: log.store.accept(address(emulator, "conv_1"), [item], 1.0))
    assert run("export", file, 1, "--output", "-") == 0
    assert capfdbinary.readouterr().out == item + b"\n"
    assert not os.path.lexists("-")


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on a file's size")
def test_export_leaves_no_part_of_a_file(file: Path, emulator: Emulator, tmp_path: Path) -> None:
    """A file that cannot be written to its end is named and removed, and made the next time."""
    record(file, address(emulator, "conv_1"), "x" * 1_000_000)
    output = tmp_path / "items.jsonl"
    status, error = apart("export", file, 1, "--output", output, limit=500_000)
    assert (status, error) == (
        1,
        f"cached-session outbox: {output}: File too large. Nothing was left there.\n",
    )
    assert not output.exists()
    assert apart("export", file, 1, "--output", output) == (0, "")
    assert len(json.loads(output.read_bytes())["content"]) == 1_000_000
