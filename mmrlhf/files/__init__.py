"""Atomic writes, JSONL, resumable output, bundled resources, and tables of rows with locations."""
