"""What training stages share: losses, advantages, optimiser steps, run directory, memory."""
