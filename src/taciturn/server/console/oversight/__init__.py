"""Oversight: ledger, audit log, incidents."""
