"""Text to token ids: tokenised once, kept on disk, bounded by unit."""
