"""What runs in the organisation that owns the data: so far the privacy ledger.

Needs the `[server]` extra, and never torch: whoever keeps the budget does not open the data.
"""
