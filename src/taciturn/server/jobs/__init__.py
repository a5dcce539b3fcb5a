"""A job in the gateway: priced, approved, held in the ledger, launched, watched, closed."""
