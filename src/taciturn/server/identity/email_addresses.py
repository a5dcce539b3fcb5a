"""E-mail addresses of people: those that an identity provider vouches for, or that were confirmed
by a code that was sent there. Nobody sets one for somebody else."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, Row, delete, insert, select, update

from taciturn.server.schema.tables import email_addresses
from taciturn.wire.notifications import Address

_ADDRESS: TypeAdapter[str] = TypeAdapter(Address)


def address_row(connection: Connection, user_id: str) -> Row[Any] | None:
    """Return what is known of a person's address."""
    query = select(email_addresses).where(email_addresses.c.user_id == user_id)
    return connection.execute(query).first()


def keep(connection: Connection, user_id: str, **columns: Any) -> None:
    """Change what is known of a person's address."""
    if address_row(connection, user_id) is None:
        connection.execute(insert(email_addresses).values(user_id=user_id, **columns))
        return
    own = update(email_addresses).where(email_addresses.c.user_id == user_id)
    connection.execute(own.values(**columns))


def keep_vouched(connection: Connection, user_id: str, address: str) -> None:
    """Take over the address of an identity provider; one that is no address is left alone."""
    try:
        keep(connection, user_id, address=_ADDRESS.validate_python(address))
    except ValidationError:
        return


def forget(connection: Connection, user_id: str) -> None:
    """Forget a person's address."""
    connection.execute(delete(email_addresses).where(email_addresses.c.user_id == user_id))
