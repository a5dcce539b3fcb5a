"""One module per resource; each has a `router`. Routes translate; services decide."""

from taciturn.server.routes import budgets, datasets, grants, identity, ledger, policies

ROUTERS = (
    identity.router,
    datasets.router,
    policies.router,
    grants.router,
    budgets.router,
    ledger.router,
)
