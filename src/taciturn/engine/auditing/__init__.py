"""Attacks on a fitted model: what they find bounds what it leaks."""
