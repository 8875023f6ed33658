"""Where an image-text score comes from: maps of the picture, shares of the words."""
