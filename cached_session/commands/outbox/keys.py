"""The keys of an outbox that is encrypted, as the command gets them."""

from __future__ import annotations

import os
from pathlib import Path

from cached_session.commands.outbox.records import Stop
from cached_session.outbox.ciphers import Cipher, fernet_cipher

# Themselves, or in a file of that name. Not in the command line, which others on the machine can
# read.
KEYS, KEYS_FILE = "CACHED_SESSION_OUTBOX_KEYS", "CACHED_SESSION_OUTBOX_KEYS_FILE"


def cipher() -> Cipher | None:
    """The cipher with the keys that the environment names, or None.

    Raises:
        Stop: There are no keys where they are said to be, or the extra is not installed.
    """
    keys, name, path = os.environ.get(KEYS), KEYS, os.environ.get(KEYS_FILE)
    if not keys:
        if not path:
            return None
        name = path
        try:
            keys = Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeError) as error:
            raise Stop(f"{path}, which {KEYS_FILE} names, cannot be read.") from error
    try:
        return fernet_cipher(*keys.split())
    except (ImportError, ValueError) as error:
        raise Stop(f"{name}: {error}.") from None
