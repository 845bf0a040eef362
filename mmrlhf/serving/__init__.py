"""Serve models over HTTP: requests, batches, and the server."""
