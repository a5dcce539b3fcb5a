"""Bootstrap of a gateway from its settings: folders, database, keys."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Engine

from taciturn.certificate.keygen import MAX_DAYS, write_key
from taciturn.errors import DatabaseError, OutputError
from taciturn.server.context import Gateway
from taciturn.server.database import open_database
from taciturn.server.ledger import Ledger, SealKey
from taciturn.server.ledger.journal import Clock, utc_now
from taciturn.server.schema import versions
from taciturn.server.settings import Settings

OWN_SIGNING_KEY = "signing"
"""Name of the gateway's own key, in its folder: signing.pem, signing.pub, signing.trust.json."""


def open_gateway(settings: Settings, *, clock: Clock = utc_now) -> Gateway:
    """Open (on the embedded defaults: make) database and keys.

    SQLite is migrated at once; PostgreSQL only by `taciturn serve --migrate`, since several
    gateways of different versions may share it.

    Where workers are on this machine and no signing key is named, they get one of the gateway's
    own, which is made at the first start.

    Raises:
        DatabaseError: it cannot be used, or is of another version.
        SigningKeyError: the ledger key is not one.
        OutputError: a key cannot be written.
    """
    engine = open_engine(settings)
    if settings.database_url is None:
        versions.upgrade(engine)
    versions.check(engine)
    key = _seal_key(settings)
    if settings.signing_key is None and settings.launcher == "local":
        own = _own_signing_key(settings.data_dir)
        settings = settings.model_copy(update={"signing_key": str(own)})
    return Gateway(settings, engine, key, Ledger(engine, key, clock=clock), clock)


def open_engine(settings: Settings) -> Engine:
    """An engine on the gateway's database; of the embedded one, the folder is made."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.database_url is None:
        url = f"sqlite:///{settings.data_dir / 'gateway.db'}"
    else:
        url = settings.database_url.get_secret_value()
    return open_database(url, processes=settings.process_count)


def _seal_key(settings: Settings) -> SealKey:
    if settings.ledger_key is not None:
        return SealKey.from_text(settings.ledger_key.get_secret_value())
    if settings.database_url is not None:
        raise DatabaseError(
            "TACITURN_LEDGER_KEY is not set; a gateway on PostgreSQL needs the key of its ledger's "
            "seals, 64 hexadecimal digits from your secret store"
        )
    return _kept_key(settings.data_dir / "ledger.key")


def _own_signing_key(folder: Path) -> Path:
    """The key with which certificates are signed; made if it is not there, by one process alone.
    `signing.trust.json` beside it is for those who check certificates."""
    path = (folder / f"{OWN_SIGNING_KEY}.pem").absolute()
    if not path.exists():
        try:
            write_key(
                folder / OWN_SIGNING_KEY,
                name=f"taciturn gateway on {socket.gethostname()}",
                valid_from=utc_now(),
                days=MAX_DAYS,
                password=None,
            )
        except OutputError:
            if not path.exists():
                raise
    return path


def _kept_key(path: Path) -> SealKey:
    """The key in a file that only we can read; made if it is not there, by one process alone."""
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(SealKey.generate().to_text() + "\n")
    return SealKey.from_text(path.read_text(encoding="ascii"))
