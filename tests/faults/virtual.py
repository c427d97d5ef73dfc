"""An event loop whose clock jumps: what would be waited for is over at once."""

from __future__ import annotations

import asyncio
import gc
import itertools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Advances its clock instead of waiting.

    Attributes:
        iterations: How often it has gone round since `interrupt` was called.
        problems: What would have been logged: exceptions that nobody retrieved, say.
    """

    def __init__(self) -> None:
        super().__init__(_Jumping(self))
        self.iterations = 0
        self.problems: list[dict[str, Any]] = []
        self._now = 0.0
        self._interruption: tuple[int, Callable[[], object]] | None = None
        self.set_exception_handler(lambda loop, context: self.problems.append(context))

    def time(self) -> float:
        return self._now

    def interrupt(self, iterations: int, action: Callable[[], object]) -> None:
        """Calls `action` when the loop has gone round that often, between two callbacks."""
        self.iterations = 0
        self._interruption = (iterations, action)

    def assert_clean(self) -> None:
        """No task is left, and no exception that nobody heard of."""
        left = asyncio.all_tasks(self)
        assert not left, f"tasks that were left behind: {left}"
        assert not self.problems, self.problems

    def _jump(self, timeout: float | None) -> None:
        self.iterations += 1
        if self._interruption is not None and self.iterations >= self._interruption[0]:
            _, action = self._interruption
            self._interruption = None
            action()
        elif timeout is None:
            raise RuntimeError("everybody waits, and nothing is ever going to happen")
        else:
            self._now += max(timeout, 0.0)


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            self._loop._jump(timeout)
        return ready


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in virtual time; no task and no unheard exception may be left."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        result = runner.run(main)
        loop.assert_clean()
    return result


def now() -> float:
    """The running loop's clock, seconds."""
    return asyncio.get_running_loop().time()


def at_every_step(trial: Callable[[int], Coroutine[Any, Any, bool]]) -> int:
    """Runs a trial for 0, 1, 2, ... steps until it says that it was not interrupted.

    Returns:
        How many steps it took. Garbage is collected at the end, so that a task
        whose exception nobody retrieved says so.
    """
    for steps in itertools.count():
        if not run(trial(steps)):
            gc.collect()
            return steps
    raise AssertionError("it never ends")
