"""Forward operators: what an instrument does."""
