"""Values as notebooks show them: tables, cards, and their style."""
