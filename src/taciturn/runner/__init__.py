"""Runs one job of a gateway, where the data is; says only what the allow-list has."""
