"""Checkpoints for other programs, each checked against our own features."""
