"""One's own tokens and notifications."""
