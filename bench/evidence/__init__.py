"""What a private model is worth: corpora, ordinary and private fits, scores and their records."""
