"""What is in a source before it is packed: copies, leaks between splits, captions."""
