"""Row-wise SQL over a stream of rows: checked, locked in, and run batch by batch. No torch."""
