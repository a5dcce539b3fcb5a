"""Everything that a GPU has to show in one run: exactness first, then speed and memory."""
