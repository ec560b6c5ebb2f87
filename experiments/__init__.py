"""What runs are needed, and who runs them."""
