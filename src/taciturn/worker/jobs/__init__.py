"""One module for each kind of job that a worker does."""
