"""Bytes to arrays and back: npy, PNG, image files."""

JSON = "application/json"
NPY = "application/x-npy"
PNG = "image/png"
