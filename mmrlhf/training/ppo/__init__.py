"""Code of ppo alone: rollout, advantages, policy losses, updates, roles and metrics."""
