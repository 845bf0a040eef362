"""Rewards: the reward model and its checkpoint, reward functions, claim rewards, and the ledger that adds them up."""
