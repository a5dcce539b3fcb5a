"""Fitted models and base models: records, released files, checks of their contents."""
