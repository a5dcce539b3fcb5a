"""What is one's own: tokens, notifications."""
