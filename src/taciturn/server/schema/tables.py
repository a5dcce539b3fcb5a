"""The gateway's own tables; the ledger's are in `ledger/tables.py`.

Times are milliseconds since 1970 in UTC. JSON is text: the same on SQLite and PostgreSQL. Nothing
in these tables was computed from private rows, but `incidents`, which only a data owner reads,
`source_marks`: keyed digests of whole files, which nobody reads, and are compared alone, and
`text_pieces`: what a fitted model writes, on its way to whoever may use the model.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    true,
)

from taciturn.server.ledger.tables import metadata as metadata

_ID = String(40)
_NAME = String(200)

users = Table(
    "users",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", _NAME, nullable=False, unique=True),
    Column("display_name", Text),
    Column("roles", Text, nullable=False),
    Column("password_hash", Text),
    Column("oidc_subject", Text, unique=True),
    Column("disabled", Boolean, nullable=False),
    Column("sources", Text, nullable=False, server_default="[]"),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("access_changed_at_ms", BigInteger, nullable=False, server_default="0"),
)

password_links = Table(
    "password_links",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _ID, ForeignKey("users.id"), nullable=False),
    Column("made_by", _NAME, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("redeemed_at_ms", BigInteger),
    Column("address", String(60)),
    Index("ix_password_links_user_id", "user_id"),
)

memberships = Table(
    "memberships",
    metadata,
    Column("user_id", _ID, ForeignKey("users.id"), primary_key=True),
    Column("group_name", _NAME, primary_key=True),
    Index("ix_memberships_group_name", "group_name"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("user_id", _ID, ForeignKey("users.id")),
    Column("job_id", _ID),
    Column("name", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    Column("used_at_ms", BigInteger),
    CheckConstraint("kind IN ('api', 'session', 'worker')", name="kind"),
    Index("ix_tokens_user_id", "user_id"),
    Index("ix_tokens_job_id", "job_id"),
)

policies = Table(
    "policies",
    metadata,
    Column("namespace", _NAME, ForeignKey("ledger_accounts.namespace"), primary_key=True),
    Column("owner_id", _ID, ForeignKey("users.id"), nullable=False),
    Column("terms", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("settled_version", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
)

grant_terms = Table(
    "grant_terms",
    metadata,
    Column("namespace", _NAME, ForeignKey("policies.namespace"), primary_key=True),
    Column("holder", _NAME, primary_key=True),
    Column("granted_by", _ID, ForeignKey("users.id"), nullable=False),
    Column("epsilon", Float(53), nullable=False),
    Column("delta", Float(53), nullable=False),
    Column("version", Integer, nullable=False),
    Column("settled_version", Integer, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("revoked_at_ms", BigInteger),
    Index("ix_grant_terms_holder", "holder"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("namespace", _NAME, ForeignKey("policies.namespace"), nullable=False),
    Column("owner_id", _ID, ForeignKey("users.id"), nullable=False),
    Column("source", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("state", String(20), nullable=False),
    Column("columns", Text),
    Column("header", Boolean, nullable=False, server_default=true()),
    Column("stated", Text),
    Column("found", Text),
    Column("mock", Text, nullable=False),
    Column("synthetic_job", _ID),
    Column("synthetic", Text),
    Column("split_key", String(64), nullable=False),
    Column("description", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("removed_at_ms", BigInteger),
    Index("ix_datasets_namespace", "namespace"),
)

source_marks = Table(
    "source_marks",
    metadata,
    Column("dataset", _NAME, ForeignKey("datasets.name"), primary_key=True),
    Column("mark", String(32), primary_key=True),
    Column("lasting", Boolean, nullable=False),
    Index("ix_source_marks_mark", "mark"),
)

public_datasets = Table(
    "public_datasets",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("declared_by", _ID, ForeignKey("users.id"), nullable=False),
    Column("source", Text, nullable=False),
    Column("licence", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("text_field", Text),
    Column("description", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("removed_at_ms", BigInteger),
)
"""Text that somebody declares public: without a unit, a budget, or an entry in a ledger."""

base_models = Table(
    "base_models",
    metadata,
    Column("name", String(300), primary_key=True),
    Column("parameters", BigInteger, nullable=False),
    Column("context_length", Integer, nullable=False),
    Column("vocabulary", Integer, nullable=False),
    Column("added_by", _ID, ForeignKey("users.id")),
    Column("created_at_ms", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("state", String(20), nullable=False),
    Column("requester_id", _ID, ForeignKey("users.id"), nullable=False),
    Column("namespace", _NAME, ForeignKey("policies.namespace")),
    Column("dataset", _NAME, ForeignKey("datasets.name")),
    Column("model_id", _ID),
    Column("request", Text, nullable=False),
    Column("plan", Text),
    Column("event", Text),
    Column("grants", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("handle", Text),
    Column("worker_token", _ID),
    Column("lease", Integer, nullable=False, default=0),
    Column("lease_operation", String(100)),
    Column("lease_until_ms", BigInteger),
    Column("started_at_ms", BigInteger),
    Column("cancel", Boolean, nullable=False),
    Column("outcome", Text),
    Column("failure", String(40)),
    Column("incident", _ID),
    Column("policy", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("public_data", _NAME),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_requester_id", "requester_id", "created_at_ms"),
    Index("ix_jobs_namespace", "namespace", "created_at_ms"),
    Index("ix_jobs_dataset", "dataset", "created_at_ms"),
    Index("ix_jobs_model_id", "model_id"),
    Index("ix_jobs_public_data", "public_data"),
    Index("ix_jobs_created_at_ms", "created_at_ms", "id"),
    Index("ix_jobs_ended", "namespace", "state", "updated_at_ms", "id", "kind"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("worker_sequence", Text),
    Column("data", Text, nullable=False),
    Column("visible_at_ms", BigInteger, nullable=False),
    UniqueConstraint("job_id", "worker_sequence", name="uq_job_events_worker_sequence"),
    Index("ix_job_events_visible_at_ms", "visible_at_ms"),
)

tracked_runs = Table(
    "tracked_runs",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("run_id", String(100)),
    Column("sequence", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at_ms", BigInteger, nullable=False),
    Column("failing_since_ms", BigInteger),
    Column("ended_at_ms", BigInteger),
    Index("ix_tracked_runs_ended_at_ms", "ended_at_ms", "next_at_ms"),
)
"""Runs of the tracker that jobs are reported to: `sequence` is that of the last event it has."""

fit_speeds = Table(
    "fit_speeds",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("base_model", String(300), nullable=False),
    Column("method", String(20), nullable=False),
    Column("seconds_per_unit", Float(53), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("ix_fit_speeds_base_model", "base_model", "method", "created_at_ms"),
)
"""Speeds of fits that have succeeded: what plans of later ones are reckoned with."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("user_id", _ID, ForeignKey("users.id"), primary_key=True),
    Column("key", _NAME, primary_key=True),
    Column("request", String(64), nullable=False),
    Column("resource", _ID, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("job_id", _ID, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("namespace", _NAME, ForeignKey("policies.namespace"), nullable=False),
    Column("reason", String(40), nullable=False),
    Column("request", String(64), nullable=False),
    Column("needed", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("ix_approvals_state", "state"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("approval_id", _ID, ForeignKey("approvals.id"), primary_key=True),
    Column("approver_id", _ID, ForeignKey("users.id"), primary_key=True),
    Column("decision", String(20), nullable=False),
    Column("comment", Text),
    Column("created_at_ms", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("job_id", _ID, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("owner_id", _ID, ForeignKey("users.id"), nullable=False),
    Column("namespace", _NAME, ForeignKey("policies.namespace"), nullable=False),
    Column("name", Text),
    Column("base_model", String(300), nullable=False),
    Column("report", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("ix_models_owner_id", "owner_id"),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("content", Text),
    Column("created_at_ms", BigInteger, nullable=False),
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("job_id", _ID, ForeignKey("jobs.id"), nullable=False),
    Column("namespace", _NAME),
    Column("log", LargeBinary, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("ix_incidents_namespace", "namespace", "created_at_ms"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", _NAME, nullable=False),
    Column("action", String(60), nullable=False),
    Column("resource", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("code", String(60)),
    Column("request_id", _ID, nullable=False),
    Column("address", String(60)),
    Column("details", Text),
    Index("ix_audit_log_actor", "actor", "id"),
    Index("ix_audit_log_resource", "resource", "id"),
    Index("ix_audit_log_action", "action", "id"),
)

dataset_reads = Table(
    "dataset_reads",
    metadata,
    Column("dataset", _NAME, primary_key=True),
    Column("entry", BigInteger, primary_key=True, autoincrement=False),
    Index("ix_dataset_reads_entry", "entry"),
)
"""Records of the audit log that gave somebody something of a dataset, by their numbers."""

dataset_reads_end = Table(
    "dataset_reads_end",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("entry", BigInteger, nullable=False),
)
"""Number of the newest record that `dataset_reads` was made from."""

audit_log_exports = Table(
    "audit_log_exports",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("first_entry", BigInteger, nullable=False),
    Column("last_entry", BigInteger, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("first_at_ms", BigInteger, nullable=False),
    Column("last_at_ms", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("seal", String(64), nullable=False),
    Column("file", _NAME, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

text_pieces = Table(
    "text_pieces",
    metadata,
    Column("job_id", _ID, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("chars", Integer, nullable=False),
    Column("data", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("ix_text_pieces_created_at_ms", "created_at_ms"),
)
"""Streamed text on its way to a reader, removed once it is read; `chars` of the text up to here."""

logins = Table(
    "logins",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("subject", _NAME, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("ix_logins_subject", "subject", "at_ms"),
)

login_requests = Table(
    "login_requests",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("code", String(20), nullable=False, unique=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("host", _NAME, nullable=False),
    Column("address", String(60), nullable=False),
    Column("network", String(60), nullable=False),
    Column("state", String(20), nullable=False),
    Column("user_id", _ID, ForeignKey("users.id")),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)
"""Programs that wait until somebody lets them act as they do; removed once their time is over."""

email_addresses = Table(
    "email_addresses",
    metadata,
    Column("user_id", _ID, ForeignKey("users.id"), primary_key=True),
    Column("address", Text),
    Column("pending", Text),
    Column("code", String(64)),
    Column("code_until_ms", BigInteger),
    Column("tries", Integer, nullable=False, server_default="0"),
)
"""`address` is known to be the person's; `pending` waits for its code, whose digest is kept."""

notification_preferences = Table(
    "notification_preferences",
    metadata,
    Column("user_id", _ID, ForeignKey("users.id"), primary_key=True),
    Column("kind", String(40), primary_key=True),
    Column("email", Boolean, nullable=False),
    Column("webhook", Boolean, nullable=False),
)

notification_endpoints = Table(
    "notification_endpoints",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _ID, ForeignKey("users.id"), nullable=False),
    Column("name", _NAME, nullable=False),
    Column("host", String(300), nullable=False),
    Column("form", String(20), nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("earlier_secret", Text),
    Column("rotated_at_ms", BigInteger),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("removed_at_ms", BigInteger),
    Index("ix_notification_endpoints_user_id", "user_id"),
)
"""Receivers of webhooks; url and secrets are sealed."""

notifications = Table(
    "notifications",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("key", String(600), nullable=False, unique=True),
    Column("subject", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("due_at_ms", BigInteger, nullable=False),
    Column("addressed_at_ms", BigInteger),
    Index("ix_notifications_addressed_at_ms", "addressed_at_ms"),
)

notification_deliveries = Table(
    "notification_deliveries",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("notification_id", _ID, ForeignKey("notifications.id"), nullable=False),
    Column("user_id", _ID, ForeignKey("users.id"), nullable=False),
    Column("endpoint_id", _ID, ForeignKey("notification_endpoints.id")),
    Column("state", String(20), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("answer", String(300)),
    Column("next_at_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("ended_at_ms", BigInteger),
    Index("ix_notification_deliveries_state", "state", "next_at_ms"),
    Index("ix_notification_deliveries_user_id", "user_id", "created_at_ms"),
    Index("ix_notification_deliveries_notification_id", "notification_id"),
)
