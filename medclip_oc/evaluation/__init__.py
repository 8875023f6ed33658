"""Features to figures: ranks, recall, concepts, intervals."""
