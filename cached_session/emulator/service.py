"""The Conversations API as one synchronous function from a request to a response.

Nothing here waits, opens a socket or asks a clock, so the same service runs behind HTTP, behind
ASGI in process, and behind an in-memory transport under virtual time.

Sources of the behaviour: "recorded" is traffic of the real service that a third party published,
"spec" the OpenAPI document of the API. Where neither says anything, the comment says "not known"
and the plainest behaviour stands.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterable, Set
from typing import Any, Final

from .habits import Habits
from .params import read_body, read_include, read_items, read_listing, read_metadata
from .snapshot import Snapshot
from .store import (
    Conversation,
    ConversationStore,
    ItemAlreadyInConversation,
    UnknownConversation,
    UnknownItem,
)
from .visibility import as_listed
from .wire import ApiError, Request, Response, error_response, json_response

__all__ = ["Service"]

_NO_KEY: Final = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)


class Service:
    """Answers requests from a store.

    Calls from several threads are safe: each request is handled whole before the next.
    """

    def __init__(
        self,
        store: ConversationStore | None = None,
        *,
        habits: Habits | None = None,
        initial: Snapshot | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """Creates a service.

        Args:
            store: Where conversations are kept; by default a new one with seeded ids.
            habits: Differences from the real service; by default none.
            initial: What `reset` goes back to; by default nothing. The store is left as it is.
            on_change: Called after each change of the store, before it is answered. Where it
                raises ``OSError``, the answer is 500.
        """
        self.store: ConversationStore = store or ConversationStore()
        self.habits: Habits = habits or Habits()
        self._lock = threading.RLock()  # `handle_late` handles
        self._requests = itertools.count(1)
        self._initial = initial or Snapshot()
        self._on_change = on_change
        self._resets = 0

    @property
    def resets(self) -> int:
        """How often it was reset."""
        return self._resets

    def reset(self) -> None:
        """Goes back to what it began with: all conversations and items are dropped, or as then.

        Raises:
            OSError: From `on_change`. It was reset all the same.
        """
        with self._lock:
            self._resets += 1
            self.store.restore(self._initial)
            self._changed()

    def handle(self, request: Request) -> Response:
        """Answers one request, and has changed the store by then where the request says so."""
        with self._lock:
            headers = {"x-request-id": f"req_{next(self._requests):08d}"}
            try:
                answer = self._answer(request)
                if request.method != "GET":
                    self._changed()
                return json_response(200, answer, headers)
            except ApiError as error:
                return error_response(error, headers)
            except OSError as error:
                message = f"The change was made, and could not be saved: {error.strerror}."
                return error_response(ApiError(500, message, kind="server_error"), headers)

    def handle_late(self, request: Request, resets: int) -> None:
        """Carries out a request that was held back, unless there was a reset meanwhile.

        Args:
            request: The request.
            resets: What `resets` was when it came.
        """
        with self._lock:
            if resets == self._resets:
                self.handle(request)

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def items(
        self, conversation_id: str, *, include: Set[str] = frozenset()
    ) -> list[dict[str, Any]]:
        """Returns the items of a conversation as listings show them, oldest first.

        Args:
            conversation_id: The conversation.
            include: Values of the ``include`` parameter.

        Raises:
            UnknownConversation: There is no such conversation.
        """
        with self._lock:
            stored = self.store.items(conversation_id)
            return copy.deepcopy([as_listed(item, include) for item in stored])

    def _answer(self, request: Request) -> dict[str, Any]:
        segments = request.segments()
        if not _has_key(request):
            raise ApiError(401, _NO_KEY)
        conversation_id = item_id = ""
        match segments:
            case ("conversations",):
                routes: dict[str, Callable[[], dict[str, Any]]] = {
                    "POST": lambda: self._create(request)
                }
            case ("conversations", conversation_id):
                routes = {
                    "GET": lambda: _shown(self.store.conversation(conversation_id)),
                    "POST": lambda: self._update(request, conversation_id),
                    "DELETE": lambda: self._delete(conversation_id),
                }
            case ("conversations", conversation_id, "items"):
                routes = {
                    "GET": lambda: self._list(request, conversation_id),
                    "POST": lambda: self._append(request, conversation_id),
                }
            case ("conversations", conversation_id, "items", item_id):
                routes = {
                    "GET": lambda: self._retrieve_item(request, conversation_id, item_id),
                    "DELETE": lambda: self._delete_item(conversation_id, item_id),
                }
            case _:
                raise ApiError(404, f"Invalid URL ({request.method} {request.path})")
        try:
            route = routes[request.method]
        except KeyError:
            raise ApiError(
                405,
                f"Not allowed to {request.method} on {request.path}.",
                code="method_not_supported",
            ) from None
        try:
            return route()
        except UnknownConversation:
            raise ApiError(404, f"Conversation with id '{conversation_id}' not found.") from None

    def _create(self, request: Request) -> dict[str, Any]:
        body = read_body(request)
        metadata = read_metadata(body, required=False)
        drafts = read_items(body, self.habits, required=False)
        if self.habits.initial_items_dropped:
            drafts = ()
        try:
            return _shown(self.store.create(drafts, metadata))
        except UnknownItem as error:
            raise _no_item(error, "items") from None

    def _update(self, request: Request, conversation_id: str) -> dict[str, Any]:
        # Whether an update replaces or merges is not known; both agree on a whole object.
        self.store.conversation(conversation_id)
        metadata = read_metadata(read_body(request), required=True)
        return _shown(self.store.set_metadata(conversation_id, metadata))

    def _delete(self, conversation_id: str) -> dict[str, Any]:
        self.store.delete(conversation_id)
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    def _append(self, request: Request, conversation_id: str) -> dict[str, Any]:
        self.store.conversation(conversation_id)
        include = read_include(request)
        drafts = read_items(read_body(request), self.habits, required=True)
        try:
            stored = self.store.append(conversation_id, drafts)
        except UnknownItem as error:
            raise _no_item(error, "items") from None
        except ItemAlreadyInConversation:
            raise ApiError(
                400,
                "Item already in conversation",
                param="items",
                code="item_already_in_conversation",
            ) from None
        return self._envelope((as_listed(item, include) for item in stored), has_more=False)

    def _list(self, request: Request, conversation_id: str) -> dict[str, Any]:
        self.store.conversation(conversation_id)
        listing = read_listing(request, self.habits.largest_page)
        limit, descending, after = listing.limit, listing.descending, listing.after
        try:
            page = self.store.page(conversation_id, limit=limit, descending=descending, after=after)
        except UnknownItem as error:
            if not self.habits.unknown_cursor_ignored:
                raise _no_item(error, "after") from None
            page = self.store.page(conversation_id, limit=limit, descending=descending, after=None)
        full, habits = len(page.items) == limit, self.habits
        has_more = page.has_more or (full and habits.has_more_on_full_last_page)
        if full and habits.has_more_false_on_full_page:
            has_more = False
        return self._envelope(
            (as_listed(item, listing.include) for item in page.items),
            has_more=has_more,
        )

    def _retrieve_item(
        self, request: Request, conversation_id: str, item_id: str
    ) -> dict[str, Any]:
        include = read_include(request)
        try:
            return as_listed(self.store.item(conversation_id, item_id), include)
        except UnknownItem as error:
            raise _no_item(error, None) from None

    def _delete_item(self, conversation_id: str, item_id: str) -> dict[str, Any]:
        try:
            return _shown(self.store.delete_item(conversation_id, item_id))
        except UnknownItem as error:
            if self.habits.delete_missing_ok:
                return _shown(self.store.conversation(conversation_id))
            raise _no_item(error, None) from None

    def _envelope(self, items: Iterable[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
        data = list(items)
        nothing = "" if self.habits.empty_string_for_null else None
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else nothing,
            "last_id": data[-1]["id"] if data else nothing,
            "has_more": has_more,
        }


def _has_key(request: Request) -> bool:
    scheme, _, key = (request.header("authorization") or "").partition(" ")
    return scheme.lower() == "bearer" and bool(key.strip())


def _shown(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
    }


def _no_item(error: UnknownItem, param: str | None) -> ApiError:
    # The message is recorded for `after`; the same words stand for the other places.
    return ApiError(404, f"No item found with id '{error.args[0]}'", param=param)
