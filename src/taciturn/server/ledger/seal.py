"""Seals that a database's owner cannot forge: HMACs of rows, and anchors kept elsewhere.

Entries are chained by plain digests, which anyone can compute. The end of each chain, and every
row that sums entries up, is sealed with HMAC-SHA256 under a key that the database does not hold, so
that rewriting a chain to its end is found. Going back to an earlier state as a whole (a restored
backup) leaves true seals behind; that is found by an anchor, the number of entries and the head
that a chain once had, kept where the database's owner cannot write.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from taciturn.certificate.canonical import canonical_json
from taciturn.errors import LedgerTamperedError, SigningKeyError, SpecError
from taciturn.server.ledger.entry import Name, Value

KEY_BYTES = 32
_CONTEXT = "taciturn ledger seal 1"


@dataclass(frozen=True, slots=True, repr=False)
class SealKey:
    """The secret that seals rows; it shows itself nowhere."""

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise SigningKeyError(
                f"a ledger key has {KEY_BYTES} bytes, not {len(self.secret)}; "
                f"write it as {2 * KEY_BYTES} hexadecimal digits"
            )

    @classmethod
    def generate(cls) -> SealKey:
        """A new key from the operating system's randomness."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_text(cls, text: str) -> SealKey:
        """The key that `to_text` wrote; raises SigningKeyError, which does not quote it."""
        try:
            secret = bytes.fromhex(text.strip())
        except ValueError:
            raise SigningKeyError(
                f"the ledger key is not {2 * KEY_BYTES} hexadecimal digits"
            ) from None
        return cls(secret)

    def to_text(self) -> str:
        """Hexadecimal, for a file of mode 0600 or a secret store."""
        return self.secret.hex()

    def seal(self, table: str, fields: Sequence[object]) -> str:
        """The seal of a row, in hexadecimal."""
        content = canonical_json([_CONTEXT, table, list(fields)])
        return hmac.new(self.secret, content, "sha256").hexdigest()

    def check(self, table: str, fields: Sequence[object], seal: str) -> None:
        """Raises LedgerTamperedError unless `seal` is that of the row."""
        if not hmac.compare_digest(self.seal(table, fields), seal):
            raise LedgerTamperedError(
                f"a row of {table} ({fields[0]!r}) is not as the ledger sealed it: it was changed, "
                "or the key is another one; run `taciturn ledger verify`"
            )


class Anchor(Value):
    """Length of a namespace's chain at some time, and the digest that it then ended in."""

    namespace: Name
    entries: Annotated[int, Field(ge=1)]
    head: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


_ANCHORS: TypeAdapter[tuple[Anchor, ...]] = TypeAdapter(tuple[Anchor, ...])


def anchors_text(anchors: Sequence[Anchor]) -> str:
    """The file that `read_anchors` reads: one line of JSON."""
    return canonical_json([anchor.model_dump(mode="json") for anchor in anchors]).decode() + "\n"


def read_anchors(path: Path) -> tuple[Anchor, ...]:
    """Anchors from a file; raises SpecError if it holds none."""
    try:
        return _ANCHORS.validate_json(path.read_bytes())
    except OSError as error:
        raise SpecError(f"anchor file {path} cannot be read: {error.strerror}") from None
    except ValidationError:
        raise SpecError(
            f"{path} holds no anchors; `taciturn ledger verify --write-anchor` makes such a file"
        ) from None
