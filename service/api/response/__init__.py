"""From results and errors to bytes."""
