"""One module per resource; each has a `router`. Routes translate; services decide."""

from taciturn.server.routes import identity

ROUTERS = (identity.router,)
