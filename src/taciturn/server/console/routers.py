"""All pages of the console."""

from __future__ import annotations

from taciturn.server.console import home
from taciturn.server.console.account import account, hand_over, notifications, sign_in
from taciturn.server.console.administration import base_models, operations, people, settings
from taciturn.server.console.data import (
    datasets,
    disclosures,
    policies,
    public_datasets,
    registration,
)
from taciturn.server.console.models import certificates, comparison, models, playground
from taciturn.server.console.oversight import audit_log, incidents, ledger
from taciturn.server.console.work import approvals, jobs, live_jobs, plan

ROUTERS = (
    sign_in.router,
    home.router,
    registration.router,
    datasets.router,
    public_datasets.router,
    disclosures.router,
    policies.router,
    plan.router,
    jobs.router,
    live_jobs.router,
    models.router,
    certificates.router,
    playground.router,
    comparison.router,
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
    notifications.router,
)
