"""What `import cached_session` takes beyond `import agents`."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.timing import Taken

_IMPORTS = """
import time
clocks = time.perf_counter, time.process_time
began = [clock() for clock in clocks]
import agents
between = [clock() for clock in clocks]
from cached_session import CachedSession
ended = [clock() for clock in clocks]
print(*(b - a for a, b in zip(began, between)), *(b - a for a, b in zip(between, ended)))
"""


def import_both(times: int) -> tuple[Taken, Taken]:
    """Imports both, one after the other, in so many new processes.

    Returns:
        What `import agents` took, and what `import cached_session` took after it.
    """
    agents, ours = Taken(), Taken()
    # Users import compiled files. Where none may be written, the compiler was measured.
    compiled = {**os.environ}
    compiled.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTS],
            capture_output=True,
            text=True,
            check=True,
            env=compiled,
        )
        clocks = iter(map(float, done.stdout.split()))
        for taken in (agents, ours):
            taken.seconds.append(next(clocks))
            taken.cpu.append(next(clocks))
    return agents, ours
