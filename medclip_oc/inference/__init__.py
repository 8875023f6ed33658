"""A trained model at work: embed, rank captions, search an index, show a page."""
