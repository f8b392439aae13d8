"""Bytes to arrays and back: npy, PNG, image files."""
