"""One module per resource; each has a `router`. Routes translate; services decide."""

from taciturn.server.routes import audit_log, health, identity, logins, oidc, tokens, users

ROUTERS = (
    audit_log.router,
    health.router,
    identity.router,
    logins.router,
    oidc.router,
    tokens.router,
    users.router,
)
