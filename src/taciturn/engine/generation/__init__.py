"""Generation: writing text with a fitted or a base model."""
