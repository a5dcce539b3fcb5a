"""One module per resource; each has a `router`. Routes translate; services decide."""

from taciturn.server.routes import (
    base_models,
    events,
    identity,
    incidents,
    models,
    openai,
    results,
    worker_files,
)

ROUTERS = (
    identity.router,
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
