"""Changing models that exist: freezing and converting their batch norms."""
