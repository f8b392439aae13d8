"""Is an image unlike those that a model was trained on? Statistics, their density, p-values."""
