"""All pages of the console."""

from __future__ import annotations

from taciturn.server.console import (
    account,
    approvals,
    audit_log,
    base_models,
    datasets,
    hand_over,
    home,
    incidents,
    jobs,
    ledger,
    models,
    operations,
    people,
    settings,
    sign_in,
)

ROUTERS = (
    sign_in.router,
    home.router,
    datasets.router,
    jobs.router,
    models.router,
    approvals.router,
    ledger.router,
    audit_log.router,
    incidents.router,
    operations.router,
    people.router,
    base_models.router,
    settings.router,
    account.router,
    hand_over.router,
)
