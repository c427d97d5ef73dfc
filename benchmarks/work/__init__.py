"""What is measured, one module each: what is done, and nothing about how it is shown or judged."""

from benchmarks.harness import Work
from benchmarks.work import appends, cold, crowd, flaky, loop, memory, reads, web

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        *(module.WORK for module in (loop, reads, cold, appends, flaky, memory, crowd)),
        *web.WORKS,
    )
}
