"""Which registered key owns which client number."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterable
from functools import lru_cache

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from hiso.core.plain import plain
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Owner

log = logging.getLogger(__name__)


class Owners:
    """The first registered key that claims a client number owns it, until it is released.

    Nodes that nobody registered (Flower without registered keys, or its simulation) make their own
    keys: they own no number, and get none that a key owns.
    """

    def __init__(self) -> None:
        self._by_client: dict[int, Owner] = {}
        self._ledger: Ledger | None = None
        self._denied: set[tuple[int, Owner | None]] = set()

    def keep_in(self, ledger: Ledger) -> None:
        """Uses the owners in the ledger, and adds those of numbers claimed before it existed."""
        ledger.own(self._by_client)
        self._by_client, self._ledger = ledger.owners(), ledger

    def claim(self, clients: Iterable[int], by: Owner | None) -> list[int]:
        """Those of the clients for which a node with this registered key, if any, may speak.

        A refused claim is noted once for each key, in the log and in the ledger.
        """
        given = list(clients)
        if by is not None and (new := {c: by for c in given if c not in self._by_client}):
            self._by_client |= new
            if self._ledger is not None:
                self._ledger.own(new)
        return [client for client in given if self._may(client, by)]

    def _may(self, client: int, by: Owner | None) -> bool:
        owner = self._by_client.get(client)
        if owner is None or (by is not None and by.key == owner.key):
            return True
        if (client, by) not in self._denied:
            self._denied.add((client, by))
            claimant = "a node without a registered key" if by is None else str(by)
            reason = (
                f"client {client} belongs to {owner}, and {claimant} claims to be it. If the site "
                f"has a new key: hiso serve --release {client}"
            )
            log.error("%s", reason)
            if self._ledger is not None:
                self._ledger.refuse(client, None, reason)
        return False


@lru_cache
def owner_of(public_key: bytes, site: str) -> Owner:
    """The owner for a key in PEM; its fingerprint is the one that `ssh-keygen -l` shows."""
    key = load_pem_public_key(public_key)
    blob = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    digest = hashlib.sha256(base64.b64decode(blob)).digest()
    return Owner("SHA256:" + base64.b64encode(digest).decode().rstrip("="), plain(site))
