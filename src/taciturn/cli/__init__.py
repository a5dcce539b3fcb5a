"""The command line: the same calls as the SDK, with progress on the screen."""
