"""People's data to shards."""
