"""Fine-tune CLIP on radiology images and captions, with exact gradient caching."""

__version__ = "0.1.0"
