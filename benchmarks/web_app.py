"""The web example with the SDK's session in place of ours; nothing else is different."""

from typing import Self

from agents import OpenAIConversationsSession
from app import Chat, app

__all__ = ["app"]


class PlainSession(OpenAIConversationsSession):
    """The SDK's session, with what else the app uses of ours; there is nothing to close."""

    local_name = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def _plain(chat: Chat, conversation_id: str | None) -> PlainSession:
    return PlainSession(conversation_id=conversation_id, openai_client=chat.client)


Chat.session = _plain  # type: ignore[assignment, method-assign]  # all that is different
