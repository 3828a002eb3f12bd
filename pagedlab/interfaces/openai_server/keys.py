"""Keys: who may use the server, compared in constant time, and what keeps one tenant's prefix cache from another's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tenant:
    """Whoever came with one key; without keys, everybody.

    Attributes:
        name: for logs and rate limits; tells nothing about the key
        cache_salt: prefix-cache hits happen only between requests of equal salt
    """

    name: str
    cache_salt: str | None = None


EVERYBODY = Tenant("everybody")


class KeyRing:
    """The server's keys.

    Only their hashes are kept, and all are compared each time, so that the time taken tells neither how much of a key
    was right nor which one matched.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        secret = secrets.token_bytes(32)
        self._tenants = [
            (hashlib.sha256(key.encode()).digest(), Tenant(f"tenant-{number}", _salt(secret, key)))
            for number, key in enumerate(dict.fromkeys(keys))
        ]

    @property
    def is_open(self) -> bool:
        return not self._tenants

    def tenant(self, authorization: str | None, allow_basic: bool = False) -> Tenant | None:
        """Whose key an Authorization header carries; None if it is nobody's.

        Args:
            authorization: the header.
            allow_basic: also take the key as the password of Basic authentication, which browsers ask for.
        """
        if self.is_open:
            return EVERYBODY
        given = hashlib.sha256(_key(authorization or "", allow_basic)).digest()
        found = None
        for digest, tenant in self._tenants:
            if hmac.compare_digest(digest, given):
                found = tenant
        return found


def _key(authorization: str, allow_basic: bool) -> bytes:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic" and allow_basic:
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:  # it is no base64, or not even ASCII
            return b""
    return b""


def _salt(secret: bytes, key: str) -> str:
    """Differs for each key, and cannot be guessed: it is as secret as this process."""
    return hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()
