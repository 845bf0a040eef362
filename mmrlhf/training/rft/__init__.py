"""What rft alone needs: the answers of a round, with their rewards, and its metrics."""
