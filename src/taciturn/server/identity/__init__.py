"""Who asks, and what they may do: users, tokens, passwords, sessions, permissions."""
