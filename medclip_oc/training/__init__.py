"""A run, from its start to its end or to where it is resumed."""
