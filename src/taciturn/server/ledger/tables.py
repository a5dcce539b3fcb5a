"""The ledger's tables. The entries are the truth; the other tables only save adding them up.

Costs and step counts are kept as canonical JSON: whole numbers of any size. Every row but the
entries, which are chained, carries a seal.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

_NAMESPACE = "ledger_accounts.namespace"

register = Table(
    "ledger_register",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="one_row"), primary_key=True),
    Column("accounts", Integer, nullable=False),
    Column("seal", Text, nullable=False),
)

accounts = Table(
    "ledger_accounts",
    metadata,
    Column("namespace", String(200), primary_key=True),
    Column("ordinal", Integer, nullable=False, unique=True),
    Column("epsilon", Float(53), nullable=False),
    Column("delta", Float(53), nullable=False),
    Column("charged", Text, nullable=False),
    Column("held", Text, nullable=False),
    Column("exceptions", Integer, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("head", String(64), nullable=False),
    Column("seal", Text, nullable=False),
)

grants = Table(
    "ledger_grants",
    metadata,
    Column("namespace", String(200), ForeignKey(_NAMESPACE), primary_key=True),
    Column("holder", String(200), primary_key=True),
    Column("epsilon", Float(53), nullable=False),
    Column("delta", Float(53), nullable=False),
    Column("charged", Text, nullable=False),
    Column("held", Text, nullable=False),
    Column("seal", Text, nullable=False),
)

jobs = Table(
    "ledger_jobs",
    metadata,
    Column("job", String(200), primary_key=True),
    Column("namespace", String(200), ForeignKey(_NAMESPACE), nullable=False),
    Column("grants", Text, nullable=False),
    Column("parts", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("token", Integer, nullable=False),
    Column("worker", String(200), nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("seal", Text, nullable=False),
    Index(None, "namespace"),
    Index("ix_ledger_jobs_lease", "status", "lease_until_ms"),
)

entries = Table(
    "ledger_entries",
    metadata,
    Column("namespace", String(200), ForeignKey(_NAMESPACE), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("operation_id", String(200), nullable=False, unique=True),
    Column("request", String(64), nullable=False),
    Column("recorded_at_ms", BigInteger, nullable=False),
    Column("details", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)
