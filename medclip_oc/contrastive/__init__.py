"""The exact step: loss, soft targets, and gradient caching. Pure tensors; knows no files."""
