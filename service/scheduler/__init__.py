"""Requests to fair batches to answers."""
