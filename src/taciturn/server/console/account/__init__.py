"""People themselves: sign-in, tokens, programs, notifications."""
