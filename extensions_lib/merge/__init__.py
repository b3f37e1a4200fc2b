"""Combining checkpoints."""
