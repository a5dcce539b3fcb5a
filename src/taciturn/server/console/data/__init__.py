"""Datasets of owners: registered, under terms, and what was spent and has left."""
