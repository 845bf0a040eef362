"""Files: atomic writes, JSONL, resumable output, bundled content, and rows with their place in a file."""
