"""Identity of callers, and their permissions: users, tokens, passwords, sessions, access."""
