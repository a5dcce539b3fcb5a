"""One module per resource; each has a `router`. Routes translate; services decide."""

from taciturn.server.routes import approvals, identity, jobs, plans, worker

ROUTERS = (
    identity.router,
    jobs.router,
    plans.router,
    approvals.router,
    worker.router,
)
