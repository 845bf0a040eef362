"""What dpo alone needs: a step's batch, losses and gradients, reference log-probs, image pairs."""
