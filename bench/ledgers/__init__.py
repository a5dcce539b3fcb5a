"""A private PostgreSQL server, and the loads and faults that the ledger must stand."""
