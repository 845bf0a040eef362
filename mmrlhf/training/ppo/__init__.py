"""What ppo alone needs: rollout, advantages, policy losses, updates, roles and metrics."""
