"""From bytes to options and arrays, within limits."""
