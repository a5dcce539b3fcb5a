"""Plan of a run, decided from the spec and public facts only: no rows, no torch."""
