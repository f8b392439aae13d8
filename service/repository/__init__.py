"""Which bundles answer, and swapping them."""
