"""Starts and stops workers: `port.py` says what a launcher is, the other modules are launchers."""
