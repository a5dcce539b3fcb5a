"""What a run will be, decided from the spec and public facts only: no rows, no torch."""
