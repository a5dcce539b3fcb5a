"""How a worker is started: one port, several ways."""
