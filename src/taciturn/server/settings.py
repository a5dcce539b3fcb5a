"""Settings of a gateway: environment variables TACITURN_*, and defaults that work."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from taciturn.data import places
from taciturn.wire.identity import Role

_SECRET = {
    "database_url",
    "ledger_key",
    "metrics_token",
    "mlflow_token",
    "oidc_client_secret",
    "signing_key",
}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CREDENTIALS = re.compile(r"(://)[^/@]*@")
_MOST_PROCESSES = 4
_MOST_WORKERS = 4
_WORKER_BYTES = 8 << 30  # of a small model, with its rows


class Settings(BaseSettings):
    """The gateway's settings. Without any, it runs on SQLite, local disk and the local launcher."""

    model_config = SettingsConfigDict(env_prefix="TACITURN_", frozen=True, extra="ignore")

    data_dir: Annotated[
        Path, Field(description="Where the embedded defaults keep database, files and workspaces.")
    ] = Path("taciturn-gateway")
    database_url: Annotated[
        SecretStr | None, Field(description="postgresql+psycopg://...; default: SQLite.")
    ] = None
    storage_url: Annotated[
        str | None, Field(description="Object store for released files; default: local disk.")
    ] = None
    ledger_key: Annotated[
        SecretStr | None,
        Field(description="Hexadecimal; default: a file in data_dir, made at the first start."),
    ] = None
    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port to listen on; 0: any that is free.")
    ] = 8321
    processes: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="Processes that serve: one on SQLite; default on PostgreSQL: one for each "
            "core, four at most.",
        ),
    ] = None
    public_url: Annotated[
        str | None, Field(description="How clients and workers reach the gateway.")
    ] = None
    launcher: Annotated[
        str,
        Field(
            pattern="^(local|kubernetes)$",
            description="What starts workers: local (processes on this machine) or kubernetes.",
        ),
    ] = "local"
    kubernetes_config: Annotated[
        Path | None, Field(description="JSON file of the Kubernetes launcher's settings.")
    ] = None
    max_workers: Annotated[
        int | None,
        Field(
            ge=1,
            description="Jobs that run at once, looks at new datasets apart; default: one for each "
            "8 GiB of memory and each two cores, four at most.",
        ),
    ] = None
    preparation_s: Annotated[
        float,
        Field(ge=1, description="How long a job may read and prepare rows, whatever they hold."),
    ] = 4 * 3600.0
    job_s: Annotated[
        float, Field(ge=1, description="How long a job may run, from its first worker on.")
    ] = 7 * 86_400.0
    tick_s: Annotated[
        float,
        Field(gt=0, le=300, description="Events are shown at these ticks, not when they come."),
    ] = 5.0
    lease_s: Annotated[
        float,
        Field(
            ge=1, le=600, description="How long a worker may be silent before it counts as lost."
        ),
    ] = 30.0
    hold_s: Annotated[
        float, Field(ge=60, description="How long a plan is held without a worker.")
    ] = 86_400.0
    provision_s: Annotated[
        float, Field(ge=1, description="How long a worker may take to come.")
    ] = 900.0
    outage_s: Annotated[
        float,
        Field(
            ge=0,
            description="How long jobs wait while the launcher does not answer, or has no room; no "
            "longer than hold_s.",
        ),
    ] = 4 * 3600.0
    stop_s: Annotated[
        float, Field(ge=0, description="How long a cancelled worker has to end by itself.")
    ] = 20.0
    approval_s: Annotated[float, Field(ge=60, description="How long approvers have.")] = (
        7 * 86_400.0
    )
    idle_worker_s: Annotated[
        float, Field(ge=0, description="How long a sampling worker waits for another request.")
    ] = 60.0
    request_limit_bytes: Annotated[
        int, Field(ge=1024, description="Of a request's body, except for files.")
    ] = 4 * 2**20
    upload_limit_bytes: Annotated[
        int, Field(ge=1024, description="Of a file that an owner uploads through OpenAI's API.")
    ] = 512 * 2**20
    header_limit_bytes: Annotated[
        int, Field(ge=1024, le=2**20, description="Of a request's head, line and fields.")
    ] = 16 * 2**10
    header_fields: Annotated[int, Field(ge=16, description="Fields in the head of a request.")] = (
        100
    )
    target_limit_bytes: Annotated[
        int, Field(ge=256, description="Of the path and query in the request line.")
    ] = 8 * 2**10
    head_s: Annotated[
        float, Field(gt=0, description="How long the head of a request may take to come.")
    ] = 10.0
    body_idle_s: Annotated[
        float,
        Field(
            gt=0, description="How long a body, asked or answered, may rest because of a client."
        ),
    ] = 30.0
    body_rate_bytes_per_s: Annotated[
        int, Field(ge=0, description="How fast a request's body comes at least, on average.")
    ] = 256
    address_connections: Annotated[
        int,
        Field(
            ge=1,
            description="Connections from one address (IPv6: from one /64) to each process; those "
            "of trusted proxies are not counted.",
        ),
    ] = 256
    session_s: Annotated[
        float, Field(ge=60, description="How long a sign-in by password or OIDC is good.")
    ] = 12 * 3600.0
    login_attempts: Annotated[
        int,
        Field(
            ge=1,
            description="Failed logins by one name from one address before each further one has to "
            "wait, twice as long each time, 15 minutes at most; ten times as many by one name or "
            "from one address, which do not count where that name has come in from there before.",
        ),
    ] = 10
    anonymous_per_minute: Annotated[
        int,
        Field(
            ge=1,
            description="Requests of nobody in particular from one address (IPv6: from one /64), "
            "logins apart from others; ten times as many from all addresses.",
        ),
    ] = 120
    password_link_s: Annotated[
        float, Field(ge=60, description="How long a link is good through which a password is set.")
    ] = 86_400.0
    audit_log_days: Annotated[
        int | None,
        Field(ge=1, description="After which audit log rows are exported to storage and removed."),
    ] = None
    incident_days: Annotated[
        int, Field(ge=1, description="After which logs of failures, which may quote rows, go.")
    ] = 30
    backup_file: Annotated[
        Path | None,
        Field(
            description="File that your backup job touches once a backup is complete, or folder "
            "where it leaves backups: the console shows how old the newest is. Only looked at.",
        ),
    ] = None
    backup_hours: Annotated[
        float, Field(gt=0, description="Age from which the newest backup counts as old.")
    ] = 26.0
    trusted_proxies: Annotated[
        str | None,
        Field(description="Addresses whose X-Forwarded-For is believed, by comma; default: none."),
    ] = None
    metrics_token: Annotated[
        SecretStr | None,
        Field(
            min_length=16,
            description="What Prometheus shows as its bearer token; without it, no /metrics.",
        ),
    ] = None
    secure_cookies: Annotated[
        bool | None, Field(description="Default: where public_url is https.")
    ] = None
    signing_key: Annotated[
        str | None,
        Field(
            description="Given to workers, which sign certificates: PEM file, env:NAME, ...; "
            "default: a key of the gateway's own, where workers are on this machine."
        ),
    ] = None
    worker_env: Annotated[
        tuple[str, ...],
        Field(description="Names of variables that local workers get, such as AWS_PROFILE."),
    ] = ()
    source_prefixes: Annotated[
        tuple[str, ...],
        Field(
            description="Folders and URLs where every owner may register data, such as /data/ or "
            "s3://hospital/; default: none. More for one owner: taciturn user change --source.",
        ),
    ] = ()
    source_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        Field(
            description="Loopback, link-local or private addresses that workers may read data "
            "from, such as 10.1.0.0/16; default: none.",
        ),
    ] = ()
    oidc_issuer: Annotated[
        str | None, Field(description="Address of the identity provider; default: passwords alone.")
    ] = None
    oidc_client_id: Annotated[
        str | None, Field(description="Name of this gateway at the provider.")
    ] = None
    oidc_client_secret: Annotated[
        SecretStr | None, Field(description="Secret of this gateway at the provider.")
    ] = None
    oidc_name_claim: Annotated[
        str, Field(description="Claim of the ID token that is the person's name here.")
    ] = "preferred_username"
    oidc_groups_claim: Annotated[
        str, Field(description="Claim of the ID token that lists the person's groups.")
    ] = "groups"
    oidc_scopes: Annotated[
        str, Field(description="Scopes that are asked for, separated by blanks.")
    ] = "openid profile email"
    smtp_host: Annotated[
        str | None, Field(description="Mail server for notifications; default: no e-mail.")
    ] = None
    smtp_port: Annotated[int, Field(ge=1, le=65535, description="Port of the mail server.")] = 587
    smtp_tls: Annotated[
        Literal["starttls", "tls", "none"],
        Field(description="starttls (port 587), tls (port 465), or none: mail goes in the clear."),
    ] = "starttls"
    smtp_user: Annotated[
        str | None, Field(description="Name of this gateway at the mail server; default: no login.")
    ] = None
    smtp_password: Annotated[
        SecretStr | None, Field(description="Password of this gateway at the mail server.")
    ] = None
    smtp_password_file: Annotated[
        Path | None, Field(description="File with the password, instead of TACITURN_SMTP_PASSWORD.")
    ] = None
    smtp_sender: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}$",
            description="Address that notifications come from.",
        ),
    ] = None
    notification_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        Field(
            description="Loopback, link-local or private addresses that webhooks may be sent to, "
            "such as 10.1.0.0/16; default: none.",
        ),
    ] = ()
    notification_days: Annotated[
        float,
        Field(gt=0, le=30, description="How long a notification is tried before it is given up."),
    ] = 3.0
    mlflow_url: Annotated[
        str | None,
        Field(description="MLflow server that jobs are reported to, https://HOST; default: none."),
    ] = None
    mlflow_experiment: Annotated[
        str,
        Field(min_length=1, max_length=200, description="Experiment there that holds the runs."),
    ] = "taciturn"
    mlflow_token: Annotated[
        SecretStr | None, Field(min_length=1, description="Token of this gateway at MLflow.")
    ] = None
    mlflow_token_file: Annotated[
        Path | None, Field(description="File with the token, instead of TACITURN_MLFLOW_TOKEN.")
    ] = None
    oidc_roles: Annotated[
        dict[str, Role], Field(description="Group of the provider -> role here.")
    ] = {}

    @field_validator("processes")
    @classmethod
    def _served(cls, processes: int | None, info: ValidationInfo) -> int | None:
        if processes is not None and processes > 1 and _is_sqlite(info.data.get("database_url")):
            raise ValueError(
                f"{processes} processes on SQLite, which serves 1; set TACITURN_PROCESSES=1, or "
                "name a PostgreSQL server in TACITURN_DATABASE_URL"
            )
        return processes

    @field_validator("source_prefixes")
    @classmethod
    def _spelled(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(places.prefix(prefix) for prefix in prefixes)

    @field_validator("mlflow_url")
    @classmethod
    def _tracker(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_plain = is_address and url.isascii() and url.isprintable() and parts.port != 0
        except ValueError:
            is_plain = False
        if not is_plain or " " in url or "@" in parts.netloc or parts.query or parts.fragment:
            # Not quoted: it may hold a password.
            raise ValueError(
                "TACITURN_MLFLOW_URL is no address of a server; write https://HOST or "
                "https://HOST/PATH, without a user, a password or a query, and the token into the "
                "file of TACITURN_MLFLOW_TOKEN_FILE"
            )
        return url

    @model_validator(mode="after")
    def _tracks(self) -> Self:
        n_tokens = sum(token is not None for token in (self.mlflow_token, self.mlflow_token_file))
        if self.mlflow_url is None:
            if n_tokens:
                raise ValueError("a token for MLflow and no server; set TACITURN_MLFLOW_URL")
            return self
        if n_tokens > 1:
            raise ValueError(
                "2 tokens for MLflow; set one of TACITURN_MLFLOW_TOKEN and "
                "TACITURN_MLFLOW_TOKEN_FILE"
            )
        parts = urlsplit(self.mlflow_url)
        if n_tokens and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise ValueError(
                f"TACITURN_MLFLOW_URL={self.mlflow_url} would send the token in the clear; write "
                "https://"
            )
        return self

    @model_validator(mode="after")
    def _mails(self) -> Self:
        if self.smtp_host is None:
            return self
        if self.smtp_sender is None:
            raise ValueError(
                f"TACITURN_SMTP_HOST={self.smtp_host} and no sender; set TACITURN_SMTP_SENDER"
            )
        passwords = (self.smtp_password, self.smtp_password_file)
        n_passwords = sum(password is not None for password in passwords)
        if n_passwords != (0 if self.smtp_user is None else 1):
            raise ValueError(
                f"{n_passwords} passwords for the mail server; set TACITURN_SMTP_USER with one of "
                "TACITURN_SMTP_PASSWORD and TACITURN_SMTP_PASSWORD_FILE, or none of the three"
            )
        if self.smtp_user is not None and self.smtp_tls == "none":
            raise ValueError(
                "TACITURN_SMTP_TLS=none would send the password in the clear; use starttls or tls"
            )
        return self

    @property
    def worker_count(self) -> int:
        """Number of jobs that run at once, looks at new datasets apart."""
        if self.max_workers is not None:
            return self.max_workers
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        room = min(pages // _WORKER_BYTES, (os.cpu_count() or 1) // 2)
        return max(1, min(_MOST_WORKERS, room))

    @property
    def process_count(self) -> int:
        """Number of processes that serve. By default no more than the cores that this process may
        use: a process of Python computes on one."""
        if self.processes is not None:
            return self.processes
        if _is_sqlite(self.database_url):
            return 1
        # Not every system says which cores a process may use.
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return min(_MOST_PROCESSES, cores)


@dataclass(frozen=True, slots=True)
class SettingView:
    """A setting for people to read: never a secret, only whether there is one.

    Attributes:
        variable: environment variable that sets it.
        source: where its value comes from.
    """

    variable: str
    value: str
    source: Literal["environment", "taciturn serve", "default"]
    description: str
    secret: bool


def described(settings: Settings) -> tuple[SettingView, ...]:
    """Return every setting of a gateway, with where it comes from."""
    try:
        environment: Settings | None = Settings()
    except ValidationError:  # what the command line says replaces what is wrong there
        environment = None
    return tuple(_described(settings, environment, name) for name in Settings.model_fields)


def _described(settings: Settings, environment: Settings | None, name: str) -> SettingView:
    value = getattr(settings, name)
    secret = isinstance(value, SecretStr) or name in _SECRET
    if name not in settings.model_fields_set:
        source: Literal["environment", "taciturn serve", "default"] = "default"
    elif (
        environment is not None
        and name in environment.model_fields_set
        and getattr(environment, name) == value
    ):
        source = "environment"
    else:
        source = "taciturn serve"
    return SettingView(
        variable=f"TACITURN_{name.upper()}",
        value=("not set" if value is None else "set") if secret else _readable(value),
        source=source,
        description=Settings.model_fields[name].description or "",
        secret=secret,
    )


def _readable(value: object) -> str:
    """Return a value without what addresses may hold of passwords."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} as {item}" for key, item in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(_readable(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return _CREDENTIALS.sub(r"\1...@", str(value)).partition("?")[0]


def _is_sqlite(url: SecretStr | None) -> bool:
    return url is None or url.get_secret_value().startswith("sqlite")
