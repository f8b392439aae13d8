"""Routes: one thin file for each protocol."""
