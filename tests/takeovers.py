"""How soon others go on with what a worker that died had begun: as the engine saw it."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

# Each connection has its worker's name, by `named`.
_WATCH = """
CREATE TABLE public.workers (token text, name text);
CREATE FUNCTION public.note_worker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.workers VALUES (NEW.token, current_setting('application_name'));
    RETURN NULL;
END $$;
CREATE TRIGGER note_worker AFTER INSERT ON cached_session.owners
FOR EACH ROW EXECUTE FUNCTION public.note_worker();

CREATE TABLE public.takeovers (
    number bigint GENERATED ALWAYS AS IDENTITY, conversation text, died text, taken_by text,
    ran_out double precision, taken double precision
);
CREATE FUNCTION public.note_takeover() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.takeovers (conversation, died, taken_by, ran_out, taken)
    SELECT NEW.conversation, (SELECT max(name) FROM public.workers WHERE token = OLD.owner),
        current_setting('application_name'),
        extract(epoch FROM until), extract(epoch FROM clock_timestamp())
    FROM cached_session.owners
    -- Of one that was closed, others know it at once.
    WHERE token = OLD.owner AND call < 9223372036854775807
        AND EXISTS (SELECT FROM cached_session.items WHERE conversation = NEW.number);
    RETURN NULL;
END $$;
CREATE TRIGGER note_takeover AFTER UPDATE OF owner ON cached_session.conversations
FOR EACH ROW WHEN (OLD.owner <> NEW.owner AND NOT OLD.released)
EXECUTE FUNCTION public.note_takeover();
"""


class Takeover(NamedTuple):
    """One claim of what a worker had that gave nothing back.

    Attributes:
        conversation: Of which conversation.
        died: The worker that had it.
        taken_by: The one that has it from then on.
        ran_out: When the lease of the first one ended.
        taken: When the other one claimed it. Both in seconds, by the engine's clock.
    """

    conversation: str
    died: str
    taken_by: str
    ran_out: float
    taken: float


class Stranded(NamedTuple):
    """What waits of a conversation whose owner is dead.

    Attributes:
        died: The worker that had it.
        ran_out: When its lease ends.
    """

    died: str
    ran_out: float


class Delay(NamedTuple):
    """How long it took until somebody went on.

    Attributes:
        dead: Seconds from the death of the worker; None: nobody was asked before its lease ended.
        free: Seconds in which it could have been: its lease was over, and somebody was asked.
    """

    dead: float | None
    free: float

    @classmethod
    def of(cls, died: float, ran_out: float, asked: float, taken: float) -> Delay:
        """By these moments; `taken`: when it was, or until when it was not."""
        return cls(
            taken - died if asked <= ran_out else None, max(0.0, taken - max(ran_out, asked))
        )


def named(address: str, worker: str) -> str:
    """The address of a database, as a worker of this name uses it."""
    return psycopg.conninfo.make_conninfo(address, application_name=worker)


class Takeovers:
    """Those in one database, from now on."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._seen = 0
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(_WATCH)

    def news(self) -> list[Takeover]:
        """Those since it was asked last, in their order."""
        with psycopg.connect(self._address, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT number, conversation, died, taken_by, ran_out, taken FROM public.takeovers "
                "WHERE number > %s ORDER BY number",
                [self._seen],
            ).fetchall()
        self._seen = max([self._seen, *(row[0] for row in rows)])
        return [Takeover(*row[1:]) for row in rows]

    def stranded(self) -> list[Stranded]:
        """What waits now, is held, and whose owner need not live; of one conversation each."""
        with psycopg.connect(self._address, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT (SELECT max(name) FROM public.workers w WHERE w.token = o.token), "
                "extract(epoch FROM o.until)::double precision "
                "FROM cached_session.conversations c "
                "JOIN cached_session.owners o ON o.token = c.owner "
                "WHERE NOT c.released AND c.paused IS NULL AND o.call < 9223372036854775807 "
                "AND EXISTS (SELECT FROM cached_session.items WHERE conversation = c.number)"
            ).fetchall()
        return [Stranded(*row) for row in rows]


def told(delays: list[Delay]) -> str:
    """How they are distributed, in a few words."""
    dead = [delay.dead for delay in delays if delay.dead is not None]
    return (
        f"{len(delays)} takeovers: {_parts(dead)} from a death on that was waited for, "
        f"{_parts([delay.free for delay in delays])} from the end of the lease on"
    )


def _parts(values: list[float]) -> str:
    if not values:
        return "none"
    return f"p50 {part(values, 0.5):.2f} s, p99 {part(values, 0.99):.2f} s"


def part(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
