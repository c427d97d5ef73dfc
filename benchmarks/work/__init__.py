"""The benchmarks, one module each: what is done, and nothing about how it is shown."""

from benchmarks.harness import Work
from benchmarks.work import appends, cold, flaky, fleet, loop, memory, reads

WORKS: dict[str, Work] = {
    module.WORK.name: module.WORK for module in (loop, reads, cold, appends, flaky, memory, fleet)
}
