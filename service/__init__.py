"""Serves a bundle over HTTP. Imports nothing, so that `service.bundle` comes alone."""
