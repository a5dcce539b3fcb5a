"""Starts and stops workers: `base.py` says what a launcher is, the other modules are launchers."""
