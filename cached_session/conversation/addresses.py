"""Under which name an outbox has a conversation, and whose it is."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit, urlunsplit

from cached_session.outbox import Outbox
from cached_session.outbox.records import NAMED, Address
from cached_session.server.connections import Account


def address_of(owner: Account, conversation: str) -> Address:
    """Under which name an outbox has a conversation of an account.

    A base URL may carry a password, or a key in its query. What an outbox
    records holds neither; they go into the digest.
    """
    base_url = _plain(owner.base_url)
    credentials = owner.credentials if owner.fixed else ""
    if credentials and base_url != owner.base_url:
        told = f"{credentials} {owner.base_url}".encode()
        credentials = hashlib.blake2b(told, digest_size=16).hexdigest()
    return Address(
        base_url, owner.organization or "", owner.project or "", credentials, conversation
    )


def owner_of(outbox: Outbox, client: Account) -> Account:
    """Whose a client's conversations are: the account that the outbox names, or the client's own.

    A base URL's password and query may change with the key.
    """
    if outbox.account is None:
        return client
    return client._replace(
        base_url=_plain(client.base_url), credentials=NAMED + outbox.account, fixed=True
    )


def _plain(base_url: str) -> str:
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def speaks_for(client: Account, outbox: Outbox, address: Address) -> bool:
    """Whether a client may send what an outbox has under an address."""
    return address_of(owner_of(outbox, client), address.conversation) == address
