"""One module per resource; each has a `router`. Routes translate; services decide."""

from taciturn.server.http.routes import (
    approvals,
    audit_log,
    base_models,
    budgets,
    datasets,
    events,
    grants,
    health,
    identity,
    incidents,
    jobs,
    ledger,
    logins,
    models,
    oidc,
    openai,
    plans,
    policies,
    results,
    retention,
    users,
    worker,
    worker_files,
)
from taciturn.server.http.routes.account import notifications, tokens
from taciturn.server.http.routes.fine_tuning import files
from taciturn.server.http.routes.fine_tuning import jobs as fine_tuning_jobs

ROUTERS = (
    identity.router,
    logins.router,
    oidc.router,
    tokens.router,
    notifications.router,
    users.router,
    datasets.router,
    datasets.public_router,
    policies.router,
    grants.router,
    budgets.router,
    ledger.router,
    plans.router,
    jobs.router,
    events.router,
    results.router,
    approvals.router,
    models.router,
    openai.router,
    files.router,
    fine_tuning_jobs.router,
    base_models.router,
    incidents.router,
    audit_log.router,
    retention.router,
    worker.router,
    worker_files.router,
    health.router,
)
OPENAI_ROUTERS = (openai.router, openai.listing, files.router, fine_tuning_jobs.router)
"""OpenAI's whole API, under /openai/v1."""
