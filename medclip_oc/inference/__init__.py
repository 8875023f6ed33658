"""A trained model at work: embed, rank captions, search an index.

What a user names (`image_inputs`, `prompts`, `labels`) goes through the `embedder`; `ranking` or
`search` makes rows of its features, and `output` or the page (`web/`) shows them.
"""
