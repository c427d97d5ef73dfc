"""The other end of the forkserver's pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

from tests.crashes.plan import Work

_ROOT = Path(__file__).parents[2]


class Nursery:
    """Where the processes of the rounds come from."""

    def __enter__(self) -> Self:
        self._errors = TemporaryFile()
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.crashes.forkserver"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # With its input at an end it ends.
        self._server.communicate()
        self._errors.close()

    def run(self, works: tuple[Work, ...], setting: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs processes at the same time, and returns what they said when all have ended.

        Raises:
            RuntimeError: The forkserver has ended, or something was printed.
        """
        told = {"works": [asdict(work) for work in works], "setting": setting}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        try:
            self._server.stdin.write(json.dumps(told) + "\n")
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
        except BrokenPipeError:
            answer = ""
        self._errors.seek(0)
        printed = self._errors.read().decode()
        self._errors.truncate(0)
        if printed or not answer:
            raise RuntimeError(f"a process printed: {printed}")
        reports: list[dict[str, Any]] = json.loads(answer)
        return reports
