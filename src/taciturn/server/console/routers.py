"""All pages of the console."""

from __future__ import annotations

from taciturn.server.console import (
    account,
    approvals,
    certificates,
    comparison,
    datasets,
    home,
    jobs,
    models,
    oversight,
    playground,
    sign_in,
)

ROUTERS = (
    sign_in.router,
    home.router,
    datasets.router,
    jobs.router,
    models.router,
    certificates.router,
    playground.router,
    comparison.router,
    approvals.router,
    oversight.router,
    account.router,
)
