"""Atomic writes, JSONL, resumable output, bundled resources, and rows with their location."""
