"""All pages of the console."""

from __future__ import annotations

from taciturn.server.console import (
    account,
    approvals,
    audit_log,
    base_models,
    datasets,
    disclosures,
    hand_over,
    home,
    incidents,
    jobs,
    ledger,
    live_jobs,
    models,
    operations,
    people,
    plan,
    policies,
    registration,
    settings,
    sign_in,
)

ROUTERS = (
    sign_in.router,
    home.router,
    registration.router,
    datasets.router,
    disclosures.router,
    policies.router,
    plan.router,
    jobs.router,
    live_jobs.router,
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
