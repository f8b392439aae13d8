"""Bytes to arrays and back: npy, PNG, image files, JSON; and the processes and threads for it."""

JSON = "application/json"
NPY = "application/x-npy"
PNG = "image/png"
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
# What else clients call them, though these are no types: the files themselves say what they are.
IMAGE_ALIASES = frozenset({"image/jpg", "image/pjpeg", "image/x-png", "image/apng"})
