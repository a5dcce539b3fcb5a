"""The web application around the services: routes, access, limits, the OpenAPI document."""
