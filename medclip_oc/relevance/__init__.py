"""Where an image-text score comes from: maps of a picture, shares of words, and pictures of both.
Models are watched by hooks, and left as they were.
"""
