"""Datasets, and the terms under which they may be used: policies, grants, budgets."""
