"""Code of rft alone: the answers of a round, with their rewards, and its metrics."""
