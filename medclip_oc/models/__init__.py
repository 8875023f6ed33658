"""The seam to open_clip: models built, described, restored, tuned and averaged."""
