"""What training stages share, and a folder for each with what it alone needs."""
