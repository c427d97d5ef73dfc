"""What encrypts the contents of an outbox. Here alone a cipher is used."""

from __future__ import annotations

from typing import Protocol

from cached_session.errors import OutboxError
from cached_session.outbox.shared import MARK, Contents, Unreadable


class Cipher(Protocol):
    """What encrypts and decrypts what an outbox records: an object of your own, or a Fernet.

    Called in the outbox's one thread, while others wait for it: it should wait for nothing.
    """

    def encrypt(self, data: bytes, /) -> bytes:
        """Encrypts one value: an item, or what is noted with some."""

    def decrypt(self, data: bytes, /) -> bytes:
        """Decrypts what `encrypt` returned, in this or another process; raises if it cannot."""


def fernet_cipher(*keys: str | bytes) -> Cipher:
    """A cipher of the package `cryptography`, which is the extra `encryption`.

    Args:
        keys: Each as `cryptography.fernet.Fernet.generate_key()` makes it. The first one
            encrypts, and all of them decrypt.

    Returns:
        A `cryptography.fernet.MultiFernet`.

    Raises:
        ImportError: The extra is not installed.
        ValueError: There is no key, or one of them is none; names its place, and never the key.
    """
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise ImportError(
            'fernet_cipher needs cryptography: pip install "cached-session[encryption]"'
        ) from error
    if not keys:
        raise ValueError("keys: at least one is needed")
    fernets = []
    for place, key in enumerate(keys):
        try:
            fernets.append(Fernet(key))
        except (ValueError, TypeError, AttributeError):
            # Without the cause, whose frames have the key.
            raise ValueError(
                f"keys[{place}] is no Fernet key, which is 32 bytes in URL-safe base64, as "
                "cryptography.fernet.Fernet.generate_key() makes it"
            ) from None
    return MultiFernet(fernets)


class Encrypted(Contents):
    """The contents of an outbox that has a cipher.

    Args:
        place: The outbox in words, for errors.
        cipher: What encrypts them.

    Raises:
        TypeError: `cipher` is none.
    """

    def __init__(self, place: str, cipher: Cipher) -> None:
        super().__init__(place)
        if not all(callable(getattr(cipher, name, None)) for name in ("encrypt", "decrypt")):
            raise TypeError(
                "cipher must have the methods encrypt and decrypt, or be None; not "
                f"{type(cipher).__name__}"
            )
        self._cipher = cipher

    def put(self, data: bytes) -> bytes:
        try:
            return MARK + self._cipher.encrypt(data)
        except Exception as error:
            raise OutboxError(
                f"{self._place}: the outbox's cipher could not encrypt ({type(error).__name__}), "
                "and what it was given was not recorded."
            ) from error

    def _decrypted(self, data: bytes) -> bytes:
        try:
            return self._cipher.decrypt(data)
        except Exception as error:
            raise Unreadable(
                f"{self._place}: what is recorded cannot be decrypted with the outbox's cipher "
                f"({type(error).__name__}). All of it is kept. Add the key that it was recorded "
                "with to those that decrypt; if that is lost, `cached-session outbox discard` "
                "removes what waits."
            ) from error
