"""Batch norm on raw memory, compiled by Numba: loops over blocks, shared by OpenMP threads."""
