"""What Prometheus reads of a program that uses CachedSession.

An agent's history goes through an outbox while one answer of the server is lost. OpenTelemetry's
metrics of it are printed as Prometheus' exposition format has them.

Needs: pip install "cached-session[cli,otel]" opentelemetry-exporter-prometheus
"""

import asyncio

from openai import AsyncOpenAI
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest

from cached_session import CachedSession, ConversationCache, MemoryOutbox, instrument
from cached_session.emulator import Emulator, Fault, FaultKind


async def main() -> None:
    """Writes and reads a little, and prints the metrics."""
    cache, outbox = ConversationCache(), MemoryOutbox()
    provider = MeterProvider([PrometheusMetricReader()], shutdown_on_exit=False)
    instrumented = instrument(cache, meter_provider=provider)
    async with (
        Emulator() as emulator,
        AsyncOpenAI(base_url=emulator.base_url, api_key="any") as client,
        CachedSession(openai_client=client, cache=cache, outbox=outbox) as session,
    ):
        await session.add_items([{"role": "user", "content": "Day 1"}])
        await session.flush()
        lost = iter([Fault(FaultKind.RESET_AFTER_COMMIT)])
        emulator.faults = lambda _: next(lost, None)
        await session.add_items([{"role": "user", "content": "Day 2"}])
        await session.flush()
        await session.get_items()
        for line in generate_latest().decode().splitlines():
            if line.startswith("cached_session") and "_bucket" not in line:
                print(line)
    await outbox.aclose()
    instrumented.uninstrument()
    provider.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
