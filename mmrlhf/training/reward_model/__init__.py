"""What training a reward model alone needs: rows, losses, a step's gradients, measurements."""
