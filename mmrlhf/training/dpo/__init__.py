"""Code of dpo alone: a step's batch, losses and gradients, reference log-probs, image pairs."""
