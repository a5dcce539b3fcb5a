"""One module per resource; each has a `router`. Routes translate; services decide."""

from taciturn.server.routes import (
    audit_log,
    base_models,
    events,
    health,
    identity,
    incidents,
    logins,
    models,
    openai,
    results,
    tokens,
    users,
    worker_files,
)

ROUTERS = (
    audit_log.router,
    health.router,
    identity.router,
    logins.router,
    tokens.router,
    users.router,
    events.router,
    results.router,
    models.router,
    incidents.router,
    base_models.router,
    openai.router,
    worker_files.router,
)
OPENAI_ROUTERS = (openai.router, openai.listing)
"""OpenAI's whole API, under /openai/v1."""
