"""A gateway with people, data and workers around it, to be loaded, raced and killed."""
