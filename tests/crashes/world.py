"""One round: a server, a file, processes that come and are killed, and the account of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cached_session.emulator import ConversationStore, Emulator, Service, random_ids
from tests.campaigns.account import Violation, text_of
from tests.campaigns.witness import Witness
from tests.crashes.account import Process, Told
from tests.crashes.nursery import Nursery
from tests.crashes.plan import SPANS, Round, Run
from tests.servers import eventually
from tests.takeovers import Delay, Stranded, Takeovers


class World:
    """A conversation, the processes that come and go, and the account of it.

    Attributes:
        tally: What happened, by name.
        account: What was called and what returned.
        emulator: The server with its log of requests.
        delays: How long others waited, in a database, until they went on for dead ones.
    """

    def __init__(
        self,
        plan: Round,
        nursery: Nursery,
        ablation: str | None = None,
        database: str | None = None,
    ) -> None:
        """`database`: the address of an empty one that is used in place of a file."""
        self.plan = plan
        self._database = database
        self.delays: list[Delay] = []
        self._takeovers = None if database is None else Takeovers(database)
        # When processes ended, and were asked first to send what waits, by their names.
        self._ended: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self.tally: Counter[str] = Counter()
        self.account = Told()
        self.service = Witness(Service(ConversationStore(new_id=random_ids())))
        self.emulator = Emulator(service=self.service)  # type: ignore[arg-type]
        self._nursery = nursery
        self._ablation = ablation
        self._conversation: str | None = None
        self._serving = False

    @property
    def trace(self) -> list[str]:
        """The requests, one line each."""
        return [*map(str, self.emulator.requests)]

    def run(self) -> None:
        """Runs everything to its end.

        Raises:
            Violation: A promise was not kept.
        """
        plan = self.plan
        if plan.history is not None:
            self.account.starts([f"old {number}" for number in range(plan.history)])
            self._conversation = self.service.make(self.account.before)
        faults = self.service.planned(
            plan.faults(SPANS), lambda fault: self.tally.update([f"fault {fault.kind}"])
        )
        self._serve(True)
        try:
            with TemporaryDirectory(prefix="crashes-") as directory:
                self._path = Path(directory, "outbox.db")
                for run in plan.runs:
                    self.emulator.faults = faults
                    self._run(run)
                self.emulator.faults = None
                for run in plan.last:
                    (last,) = self._run(run)
                    eventually(self.service.settled)
                self._check(last)
        finally:
            self._serve(False)
            self.tally.update(seeds=1, requests=len(self.emulator.requests))

    def _serve(self, serving: bool) -> None:
        if serving is not self._serving:
            self._serving = serving
            if serving:
                self.emulator.start()
            else:
                self.emulator.stop()
                self.service.stopped()

    def _run(self, run: Run) -> list[Process]:
        self._serve(not run.away)
        setting = {
            "path": self._database or str(self._path),
            "base_url": self.emulator.base_url,
            "conversation": self._conversation,
            "ablation": self._ablation,
        }
        works = run.works
        if self._conversation is None and not self.account.accepted:
            # Nothing says yet what two processes would have in common.
            works = works[:1]
        stranded = [] if self._takeovers is None else self._takeovers.stranded()
        reports = self._nursery.run(works, setting)
        phase = self.account.begins(*(work.name for work in works))
        for process, report in zip(phase, reports, strict=True):
            self.account.hear(process, report["said"])
            self._tally(process, report["end"])
            self._ended[process.name] = report["at"]
            if "asked" in process.notes:
                self._asked[process.name] = process.notes["asked"]
        for process in phase:
            if "failed" in process.notes:
                raise Violation(f"{process.name} failed: {process.notes['failed']}")
            known = process.notes.get("conversation")
            if known is not None and (self.plan.told or self._conversation is not None):
                if self._conversation not in (None, known):
                    raise Violation(f"{self._conversation} has become {known}")
                self._conversation = known
        self.account.check_reads()
        self._measure(phase, stranded)
        return phase

    def _measure(self, phase: list[Process], stranded: list[Stranded]) -> None:
        """Notes how long it took in a run until somebody went on for dead ones."""
        if self._takeovers is None:
            return
        taken = self._takeovers.news()
        for one in taken:
            if one.died in self._ended and one.taken_by in self._asked:
                died, asked = self._ended[one.died], self._asked[one.taken_by]
                self.delays.append(Delay.of(died, one.ran_out, asked, one.taken))
        for left in () if taken else stranded:
            # Nobody did; each could until its end.
            for name in {process.name for process in phase} & {*self._asked}:
                if self._ended[name] > max(left.ran_out, self._asked[name]):
                    died, asked = self._ended[left.died], self._asked[name]
                    self.delays.append(Delay.of(died, left.ran_out, asked, self._ended[name]))

    def _tally(self, process: Process, end: str) -> None:
        self.tally["processes"] += 1
        self.tally["kills" if end == "SIGKILL" else "ended by themselves"] += 1
        if end == "SIGKILL":
            stage = "before opening" if "opened" not in process.notes else "at work"
            self.tally[f"kills {stage}"] += 1
        self.tally["calls"] += len(process.calls)
        self.tally["calls cut off"] += sum(call.unknown for call in process.calls)
        self.tally["items accepted"] += sum(len(call.sure) for call in process.calls)
        self.tally["operations"] += len(process.calls) + len(process.reads)
        self.tally["reads"] += len(process.reads)
        self.tally.update(process.events)

    def _check(self, last: Process) -> None:
        """Checks what there is in the end."""
        conversation, items = last.notes.get("conversation"), last.notes["items"]
        # Where all were killed before anything was recorded there is none.
        held: list[dict[str, Any]] = (
            [] if conversation is None else self.service.items(conversation)
        )
        listing = [text_of(item) for item in held]
        self.tally.update(self.account.count(listing))
        self.account.check_end(listing, {item["id"] for item in held})
        if items != held or not last.notes["again"]:
            raise Violation(
                f"the last read shows {[text_of(item) for item in items]}, "
                f"and the server holds {listing}"
            )
        if last.notes["waiting"]:
            raise Violation(f"{last.notes['waiting']} items are left in the file")
        for other in self.service.made:
            if other != conversation and self.service.items(other):
                raise Violation(f"another conversation, {other}, holds items")
