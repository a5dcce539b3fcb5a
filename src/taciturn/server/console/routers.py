"""All pages of the console."""

from __future__ import annotations

from taciturn.server.console import (
    account,
    approvals,
    datasets,
    home,
    jobs,
    models,
    notifications,
    oversight,
    sign_in,
)

ROUTERS = (
    sign_in.router,
    home.router,
    datasets.router,
    jobs.router,
    models.router,
    approvals.router,
    oversight.router,
    account.router,
    notifications.router,
)
