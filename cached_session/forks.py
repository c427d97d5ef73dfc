"""What begins anew in a process that was forked.

A child inherits the parent's locks, perhaps taken by threads that it does not
have, its event loops, their tasks, and its sockets. Those are the parent's. The
child must not use them, and not destroy them either: what a task does when it is
destroyed, it would do to the sockets and the loops of the parent.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_actions: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_parents: list[object] = []


def in_child(holder: T, begin: Callable[[T], None]) -> None:
    """Has a holder of such things, while it lives, begin anew in every child."""
    _actions[holder] = begin


def keep(*parents: object) -> None:
    """Keeps what is the parent's from being destroyed in its child."""
    _parents.extend(parents)


def _begin() -> None:
    for holder, begin in list(_actions.items()):
        begin(holder)


class Lock:
    """A lock that is free in a child, whoever had it in the parent."""

    def __init__(self) -> None:
        self._renew()
        in_child(self, Lock._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# Where nothing forks, there is none.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)
