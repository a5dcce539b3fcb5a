"""Local passwords, by argon2id. Whether there is a user, or a password, takes equally long."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_AT_ONCE = 2  # each takes 64 MiB and a core: many logins at once must not take the machine


@dataclass(frozen=True, slots=True)
class Passwords:
    """Makes and checks hashes."""

    hasher: PasswordHasher = field(default_factory=PasswordHasher)
    _turn: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(_AT_ONCE)
    )
    _decoy: list[str] = field(default_factory=list)

    def hash(self, password: str) -> str:
        """Hash of a password, as it is kept."""
        with self._turn:
            return self.hasher.hash(password)

    def matches(self, password: str, password_hash: str | None) -> bool:
        """True if this is the password. Without a hash to compare with, a decoy is compared, so
        that an answer's time doesn't tell who has a password here."""
        against = password_hash if password_hash is not None else self._decoy_hash()
        with self._turn:
            try:
                self.hasher.verify(against, password)
            except (VerificationError, InvalidHashError):
                return False
        return password_hash is not None

    def prepare(self) -> None:
        """Make the decoy ahead of the first login, whose time it would add to."""
        self._decoy_hash()

    def _decoy_hash(self) -> str:
        if not self._decoy:
            self._decoy.append(self.hash("nobody has this password"))
        return self._decoy[0]
