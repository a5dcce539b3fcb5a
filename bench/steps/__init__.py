"""The step benchmark: ordinary fine-tuning, ours, and Opacus, side by side on the same work."""
