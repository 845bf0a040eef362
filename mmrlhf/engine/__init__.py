"""Sample and score answers: a prompt runs once, and its answers run on its keys and values."""
