"""Fitted models: read, verified, asked, compared."""
