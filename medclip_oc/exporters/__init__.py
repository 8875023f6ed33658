"""Checkpoints for other programs.

An export is written under a temporary name, opened anew by the library that it is for, and compared
with the checkpoint on real images and texts; it appears only where their features agree.
"""
