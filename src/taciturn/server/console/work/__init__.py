"""Fits and other jobs: planned, approved, followed."""
