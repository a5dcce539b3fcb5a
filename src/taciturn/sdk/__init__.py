"""The client of a gateway: httpx and plain values, no torch."""
