"""From anything that holds rows to tokenised privacy units on disk, and to microbatches."""
