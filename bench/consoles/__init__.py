"""Parts of the console's benchmark: a gateway that is full, its pages, its open readers."""
