"""All pages of the console."""

from __future__ import annotations

from taciturn.server.console import (
    account,
    approvals,
    datasets,
    home,
    jobs,
    live_jobs,
    models,
    oversight,
    plan,
    sign_in,
)

ROUTERS = (
    sign_in.router,
    home.router,
    datasets.router,
    plan.router,
    jobs.router,
    live_jobs.router,
    models.router,
    approvals.router,
    oversight.router,
    account.router,
)
