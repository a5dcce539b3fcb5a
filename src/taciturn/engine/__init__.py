"""The engine: a library of its own that fine-tunes with differential privacy, no server needed."""
