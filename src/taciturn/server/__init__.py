"""The gateway of whoever owns the data: ledger, datasets and terms, jobs and models.

Needs the `[server]` extra, and never torch: whoever keeps the budget does not open the data.
"""
