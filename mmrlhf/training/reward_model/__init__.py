"""Code of training a reward model alone: rows, losses, a step's gradients, measurements."""
