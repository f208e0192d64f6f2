"""Training, measuring and using the reference network."""
