"""The quickstart: the story of one secret, told by `taciturn demo` and kept in one HTML page."""
