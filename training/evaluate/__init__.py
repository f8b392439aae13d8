"""Figures of a model: bounds, anomaly detection, curves."""
