"""An agent with a tool that remembers a conversation, without a key and without a network.

The emulator keeps the conversation and a scripted model answers. With a real key, leave out
`openai_client` and `model`, and the rest stays as it is.
"""

import asyncio

from agents import Agent, RunConfig, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from openai import AsyncOpenAI

from cached_session import CachedSession
from cached_session.emulator import Emulator


@function_tool
def stock(item: str) -> str:
    """Says how many of an item the warehouse holds."""
    return f"28 {item} in stock"


async def main() -> None:
    """Asks two questions, the second of which needs the first one's answer."""
    model = ScriptedModel(
        [
            [function_call("stock", {"item": "lanterns"}, call_id="call_1")],
            [assistant_message("There are 28 lanterns.")],
            [assistant_message("Half of them are 14.")],
        ]
    )
    agent = Agent(name="Warehouse", tools=[stock], model=model)
    # Traces would be sent to the service.
    config = RunConfig(tracing_disabled=True)

    async with (
        Emulator() as emulator,
        AsyncOpenAI(base_url=emulator.base_url, api_key="any") as client,
        CachedSession(openai_client=client) as session,
    ):
        for question in ("How many lanterns are there?", "And half of them?"):
            result = await Runner.run(agent, question, session=session, run_config=config)
            print(f"{question} {result.final_output}")
        stats = session.stats
        print(f"{stats.items} items, {stats.requests} requests, none of them to read")
        for request in emulator.requests:
            print(request.method, request.path.replace(session.session_id, "ID"))


if __name__ == "__main__":
    asyncio.run(main())
