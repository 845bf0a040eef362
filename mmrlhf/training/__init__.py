"""What training stages share: losses, advantages, optimiser steps, the run directory, memory estimates."""
