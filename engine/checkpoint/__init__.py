"""Models on disk: opened, checked, loaded, written and converted."""
