"""Bytes to arrays and back: npy, PNG, image files."""

JSON = "application/json"
NPY = "application/x-npy"
PNG = "image/png"
IMAGES = ("image/png", "image/jpeg", "image/webp", "image/jpg")  # the last is common, though none
