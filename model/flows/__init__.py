"""Flow steps: `(z, context) -> (z', log_det)`."""
