"""A socket, uvicorn, signals, bounds on slow clients."""
