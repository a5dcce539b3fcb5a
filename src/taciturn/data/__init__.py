"""Rows: opened from any source, prepared by SQL, bounded by unit and tokenised. No torch."""
