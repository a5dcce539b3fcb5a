"""Where released files are kept: local disk or an object store."""
