"""`taciturn serve --check`: can a gateway with these settings serve? If not, what to do about it.

Looks, and changes nothing: no table is made, no key, no token; of the store, one small probe is
written, read and removed.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from smtplib import SMTPException

from sqlalchemy import Engine, text

from taciturn.errors import TaciturnError
from taciturn.server.database import open_database, transact
from taciturn.server.ledger import SealKey, namespaces, statement
from taciturn.server.models.storage import open_store
from taciturn.server.notifications import mail
from taciturn.server.schema import versions
from taciturn.server.settings import Settings
from taciturn.server.tracking.mlflow import Mlflow, TrackerError

MAX_SKEW_S = 5.0
_PROBE = b"taciturn"
_RELEASED = datetime.fromisoformat("2025-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination. `remedy` says what to do; empty where all is well."""

    what: str
    text: str
    remedy: str = ""

    @property
    def fine(self) -> bool:
        """True if the gateway can serve, as far as this goes."""
        return not self.remedy


def check(settings: Settings) -> list[Finding]:
    """Check everything that a gateway needs."""
    findings = [
        _data_dir(settings),
        *_login(settings),
        *_mail(settings),
        *_tracker(settings),
        _storage(settings),
        check_launcher(settings),
    ]
    return [*findings, *_database(settings)]


def _data_dir(settings: Settings) -> Finding:
    folder = settings.data_dir.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "data folder",
            f"{existing} cannot be written",
            "give --data-dir (TACITURN_DATA_DIR) a folder that this user may write",
        )
    return Finding("data folder", f"{folder}{'' if existing == folder else ', to be made'}")


def _login(settings: Settings) -> Iterator[Finding]:
    values = {
        "TACITURN_OIDC_ISSUER": settings.oidc_issuer,
        "TACITURN_OIDC_CLIENT_ID": settings.oidc_client_id,
        "TACITURN_PUBLIC_URL": settings.public_url,
        "TACITURN_OIDC_ROLES": settings.oidc_roles,
    }
    missing = [name for name, value in values.items() if not value]
    if settings.oidc_issuer and missing:
        yield Finding("OIDC login", "not complete", f"set {', '.join(missing)} as well")
    elif settings.oidc_issuer:
        yield Finding("OIDC login", f"through {settings.oidc_issuer}")
    if (settings.public_url or "").startswith("https://"):
        yield _proxy(settings.trusted_proxies)
    local = settings.host in ("127.0.0.1", "::1", "localhost")
    if not local and not (settings.public_url or "").startswith("https://"):
        yield Finding(
            "transport",
            f"listens on {settings.host}, and public_url is not https",
            "put a TLS proxy in front and set TACITURN_PUBLIC_URL=https://..., or listen on "
            "127.0.0.1: tokens must not travel in the clear",
        )


def _proxy(trusted: str | None) -> Finding:
    """Check trusted proxies: without them it serves, but one client's failures count for all."""
    if trusted is None:
        return Finding(
            "proxy",
            "none is trusted: connections, failed logins, requests without a token count for the "
            "proxy's address, so for everybody; TACITURN_TRUSTED_PROXIES names it",
        )
    return Finding("proxy", f"{trusted} says where clients come from")


def _mail(settings: Settings) -> Iterator[Finding]:
    """Look if the mail server lets the gateway in; no mail is sent."""
    if settings.smtp_host is None:
        return
    server = f"{settings.smtp_host}:{settings.smtp_port}"
    try:
        mail.connect(settings).quit()
    except (OSError, SMTPException) as error:
        yield Finding(
            "mail",
            f"{server} does not let the gateway in ({type(error).__name__})",
            "check TACITURN_SMTP_HOST, _PORT, _TLS, _USER and its password, and that the server's "
            "certificate is trusted here (SSL_CERT_FILE)",
        )
        return
    yield Finding("mail", f"through {server}, {settings.smtp_tls}")


def _tracker(settings: Settings) -> Iterator[Finding]:
    """Look if MLflow answers; nothing is made there."""
    if settings.mlflow_url is None:
        return
    try:
        mlflow = Mlflow.of(settings)
        mlflow.patience_s = 0.0
        try:
            mlflow.find_experiment()
        finally:
            mlflow.close()
    except TrackerError as error:
        yield Finding(
            "tracker",
            f"{settings.mlflow_url}: {error}",
            "check TACITURN_MLFLOW_URL and the token, and that the server's certificate is trusted "
            "here (SSL_CERT_FILE); jobs run without it all the same",
        )
        return
    yield Finding("tracker", f"{settings.mlflow_url}, experiment {settings.mlflow_experiment}")


def _storage(settings: Settings) -> Finding:
    """Write, rename, read and remove a file, as the gateway does, through the same store."""
    url, key = settings.storage_url, f"jobs/check-{uuid.uuid4().hex}"
    if url is None and not (settings.data_dir / "files" / "jobs").is_dir():
        return Finding("storage", "files in the data folder")
    try:
        store = open_store(settings)
        try:
            store.write(key, [_PROBE], len(_PROBE))
            read = b"".join(store.get(key))
        finally:
            store.delete(key)
    except Exception as error:
        return Finding(
            "storage",
            f"{url or 'the data folder'} cannot be written and read ({type(error).__name__})",
            "check TACITURN_STORAGE_URL, the store's endpoint and the credentials in the "
            "environment"
            if url
            else "check room and rights of the data folder",
        )
    if read != _PROBE:
        return Finding(
            "storage",
            f"{url or 'the data folder'} gives other bytes than were written",
            "look for what stands between the gateway and its store, such as a cache",
        )
    return Finding("storage", f"{url or 'files in the data folder'}: written and read")


def check_launcher(settings: Settings) -> Finding:
    """Check that what the launcher of the settings needs on this machine is installed."""
    if settings.launcher == "kubernetes":
        modules: tuple[str, ...] = ("kubernetes",)
        remedy = "install taciturn[kubernetes]"
    else:
        modules = ("torch", "transformers", "peft")
        remedy = "install taciturn[engine], or use --launcher kubernetes"
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("launcher", f"{settings.launcher} needs {', '.join(missing)}", remedy)
    return Finding("launcher", f"{settings.launcher}, {settings.worker_count} worker(s) at once")


def _database(settings: Settings) -> Iterator[Finding]:
    """Database, its revision, the clock, the ledger: each needs the one before."""
    if settings.database_url is None and not (settings.data_dir / "gateway.db").is_file():
        yield Finding("database", "SQLite in the data folder, to be made at the first start")
        return
    findings: list[Finding] = []
    engine = _checked_engine(
        "database", "check TACITURN_DATABASE_URL", lambda: _reachable_database(settings), findings
    )
    yield from findings
    if engine is None:
        return
    try:
        yield _clock(engine)
        revision = _revision(engine)
        yield revision
        if revision.fine:
            yield _ledger(engine, settings)
    except TaciturnError as error:
        yield Finding("database", str(error), "see the message")
    finally:
        engine.dispose()


def _reachable_database(settings: Settings) -> Engine:
    url = settings.database_url
    local = f"sqlite:///{settings.data_dir / 'gateway.db'}"
    engine = open_database(url.get_secret_value() if url else local, create=False)
    transact(engine, lambda c: c.execute(text("SELECT 1")), read_only=True, patience_s=5)
    return engine


def _checked_engine(
    what: str, remedy: str, work: Callable[[], Engine], findings: list[Finding]
) -> Engine | None:
    try:
        engine = work()
    except TaciturnError as error:
        findings.append(Finding(what, str(error), remedy))
        return None
    findings.append(Finding(what, f"{engine.dialect.name}, reachable"))
    return engine


def _clock(engine: Engine) -> Finding:
    remedy = "set the clocks by NTP: leases, expiry and tokens go by them"
    here_s = time.time()
    if here_s < _RELEASED.timestamp():
        return Finding("clock", "it says a time before this program was written", remedy)
    if engine.dialect.name != "postgresql":
        return Finding("clock", "plausible")
    query = text("SELECT extract(epoch FROM clock_timestamp())")
    there_s = float(
        transact(engine, lambda c: c.execute(query).scalar_one(), read_only=True, patience_s=5)
    )
    if abs(there_s - here_s) > MAX_SKEW_S:
        return Finding(
            "clock", f"{there_s - here_s:+.1f} s away from the database server's", remedy
        )
    return Finding("clock", "agrees with the database server's")


def _revision(engine: Engine) -> Finding:
    try:
        versions.check(engine)
    except TaciturnError as error:
        return Finding("schema", str(error), "run `taciturn serve --migrate`")
    return Finding("schema", "of this version")


def _ledger(engine: Engine, settings: Settings) -> Finding:
    """The seals of all balances; `taciturn ledger verify` derives them again from the entries."""
    try:
        key = _seal_key(settings)
        names = namespaces(engine)
        for name in names:
            statement(engine, key, name)
    except TaciturnError as error:
        return Finding("ledger", str(error), "run `taciturn ledger verify`, which says more")
    except OSError:
        return Finding(
            "ledger", "its key is not there", "set TACITURN_LEDGER_KEY, or bring ledger.key back"
        )
    return Finding("ledger", f"seals of {len(names)} namespace(s) are in order")


def _seal_key(settings: Settings) -> SealKey:
    if settings.ledger_key is not None:
        return SealKey.from_text(settings.ledger_key.get_secret_value())
    return SealKey.from_text(Path(settings.data_dir / "ledger.key").read_text(encoding="ascii"))
