"""How answers are sampled and scored: a prompt runs once, and all of its answers run on its keys and values."""
