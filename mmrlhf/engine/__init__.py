"""Sample and score answers: a prompt runs once, and all of its answers run on its keys and values."""
and values."""
