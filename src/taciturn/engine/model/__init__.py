"""Models: loading, adapters, and the loss that the engine owns."""
