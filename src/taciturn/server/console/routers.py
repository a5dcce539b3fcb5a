"""All pages of the console."""

from __future__ import annotations

from taciturn.server.console import (
    account,
    approvals,
    datasets,
    disclosures,
    home,
    jobs,
    live_jobs,
    models,
    oversight,
    plan,
    policies,
    registration,
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
    oversight.router,
    account.router,
)
