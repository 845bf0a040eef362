"""Code shared by the training stages, and a folder for each stage with its own code."""
