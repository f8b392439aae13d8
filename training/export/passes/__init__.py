"""Rewriting of a model before export."""
