"""Step graphs with explicit state, for other runtimes."""
