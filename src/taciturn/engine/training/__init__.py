"""Training loop: the step (read step.py first), the loop around it, and what survives a crash."""
