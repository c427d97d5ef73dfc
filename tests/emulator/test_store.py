"""The store against a plain list, and the rules between conversations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from cached_session.emulator import ConversationStore, seeded_ids
from cached_session.emulator.items import Draft
from cached_session.emulator.store import (
    ItemAlreadyInConversation,
    UnknownConversation,
    UnknownItem,
)


def message(text: str, identifier: str | None = None) -> Draft:
    return Draft("msg", identifier, {"type": "message", "content": text})


def reference(identifier: str) -> Draft:
    return Draft("", identifier, None)


class StoreModel(RuleBasedStateMachine):
    """Does everything twice: in the store, and in a dict of lists of (id, text)."""

    conversations: Bundle[str] = Bundle("conversations")
    items: Bundle[str] = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        self.store = ConversationStore()
        self.model: dict[str, list[tuple[str, str]]] = {}
        self.texts: dict[str, str] = {}

    @rule(target=conversations)
    def create(self) -> str:
        conversation = self.store.create([], {})
        self.model[conversation.id] = []
        return conversation.id

    @rule(
        target=items,
        conversation=conversations,
        texts=st.lists(st.text(max_size=3), min_size=1, max_size=5),
    )
    def append(self, conversation: str, texts: list[str]) -> Any:
        if conversation not in self.model:
            with pytest.raises(UnknownConversation):
                self.store.append(conversation, [message(text) for text in texts])
            return multiple()
        stored = self.store.append(conversation, [message(text) for text in texts])
        assert [item["content"] for item in stored] == texts
        for item in stored:
            self.texts[item["id"]] = item["content"]
            self.model[conversation].append((item["id"], item["content"]))
        return multiple(*[item["id"] for item in stored])

    @rule(conversation=conversations, shared=st.lists(items, min_size=1, max_size=3))
    def share(self, conversation: str, shared: list[str]) -> None:
        drafts = [message("other content", identifier) for identifier in shared]
        if conversation not in self.model:
            return
        held = {identifier for identifier, _ in self.model[conversation]}
        if held & set(shared):
            with pytest.raises(ItemAlreadyInConversation):
                self.store.append(conversation, drafts)
            return
        self.store.append(conversation, drafts)
        self.model[conversation] += [(item, self.texts[item]) for item in shared]

    @rule(conversation=conversations, item=items)
    def delete_item(self, conversation: str, item: str) -> None:
        entries = self.model.get(conversation)
        if entries is None or item not in [identifier for identifier, _ in entries]:
            with pytest.raises((UnknownConversation, UnknownItem)):
                self.store.delete_item(conversation, item)
            return
        self.store.delete_item(conversation, item)
        self.model[conversation] = [entry for entry in entries if entry[0] != item]

    @rule(conversation=consumes(conversations))
    def delete(self, conversation: str) -> None:
        if conversation in self.model:
            self.store.delete(conversation)
            del self.model[conversation]
        with pytest.raises(UnknownConversation):
            self.store.page(conversation, limit=1, descending=False, after=None)

    @rule(conversation=conversations, limit=st.integers(1, 7), descending=st.booleans())
    def walk(self, conversation: str, limit: int, descending: bool) -> None:
        if conversation not in self.model:
            return
        entries = self.model[conversation]
        expected = entries[::-1] if descending else entries
        if len(set(entries)) < len(entries):
            return  # where an id stands twice, `after` cannot tell the two places apart
        seen: list[tuple[str, str]] = []
        after, more = None, True
        while more:
            page = self.store.page(conversation, limit=limit, descending=descending, after=after)
            seen += [(item["id"], item["content"]) for item in page.items]
            after = seen[-1][0] if seen else None
            more = page.has_more
            assert more == (len(seen) < len(expected))
            assert len(page.items) == limit or not more
        assert seen == expected

    @rule(conversation=conversations, item=items, descending=st.booleans())
    def page_after(self, conversation: str, item: str, descending: bool) -> None:
        entries = self.model.get(conversation)
        if entries is None:
            return
        expected = entries[::-1] if descending else entries
        places = [place for place, entry in enumerate(expected) if entry[0] == item]
        if not places:
            with pytest.raises(UnknownItem):
                self.store.page(conversation, limit=3, descending=descending, after=item)
            return
        page = self.store.page(conversation, limit=3, descending=descending, after=item)
        following = expected[places[-1] + 1 :]
        assert [(shown["id"], shown["content"]) for shown in page.items] == following[:3]
        assert page.has_more == (len(following) > 3)

    @invariant()
    def same_as_the_model(self) -> None:
        assert self.store.ids() == tuple(self.model)
        for conversation, entries in self.model.items():
            stored = self.store.items(conversation)
            assert [(item["id"], item["content"]) for item in stored] == entries


StoreModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None
)
TestStoreAgainstLists = StoreModel.TestCase


def test_seed_makes_the_same_ids() -> None:
    """Two stores with the same seed give out the same ids; another seed gives others."""

    def run(seed: int) -> list[str]:
        store = ConversationStore(new_id=seeded_ids(seed))
        conversation = store.create([message("a")], {}).id
        return [conversation, *[item["id"] for item in store.items(conversation)]]

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_time_is_asked_of_the_caller() -> None:
    """`created_at` is what the injected clock says."""
    assert ConversationStore(now=lambda: 1_700_000_000).create([], {}).created_at == 1_700_000_000


def test_invented_id_is_kept() -> None:
    """A well-formed id that no item has becomes the id of the new item."""
    store = ConversationStore()
    conversation = store.create([], {}).id
    (item,) = store.append(conversation, [message("x", "msg_mine")])
    assert item["id"] == "msg_mine"


def test_invented_id_twice_is_listed_twice() -> None:
    """One new id twice in a request stands twice, with the content of the first."""
    store = ConversationStore()
    conversation = store.create([], {}).id
    store.append(conversation, [message("x", "msg_mine"), message("y", "msg_mine")])
    assert [item["content"] for item in store.items(conversation)] == ["x", "x"]


def test_deleting_an_item_removes_every_place() -> None:
    """An item that stands twice is gone from both places after one deletion."""
    store = ConversationStore()
    conversation = store.create([], {}).id
    store.append(conversation, [message("x", "msg_1"), message("x", "msg_1"), message("y")])
    store.delete_item(conversation, "msg_1")
    assert [item["content"] for item in store.items(conversation)] == ["y"]


def test_unknown_reference_wins_over_a_known_one() -> None:
    """A reference to nothing is reported even where another item is there already."""
    store = ConversationStore()
    conversation = store.create([message("x", "msg_1")], {}).id
    with pytest.raises(UnknownItem):
        store.append(conversation, [reference("msg_1"), reference("msg_2")])
    assert len(store.items(conversation)) == 1


def test_refused_batch_leaves_nothing_behind() -> None:
    """The items of a refused batch cannot be named from anywhere later."""
    store = ConversationStore()
    conversation = store.create([message("x", "msg_1")], {}).id
    with pytest.raises(ItemAlreadyInConversation):
        store.append(conversation, [message("new", "msg_2"), message("x", "msg_1")])
    with pytest.raises(UnknownItem):
        store.append(store.create([], {}).id, [reference("msg_2")])


def test_refused_creation_leaves_nothing_behind() -> None:
    """A conversation whose first items refer to nothing is not made."""
    store = ConversationStore()
    with pytest.raises(UnknownItem):
        store.create([reference("msg_1")], {})
    assert store.ids() == ()
