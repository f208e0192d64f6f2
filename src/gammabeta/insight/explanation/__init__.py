"""The numbers behind an explanation, each measured on a real model."""
