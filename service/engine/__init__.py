"""One operation on one batch; the only importers of the runtimes."""
