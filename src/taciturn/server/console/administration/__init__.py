"""Administration: people, base models, workers, settings."""
