"""clipdistill: distil CLIP into a small multi-label classifier without a single label."""

__version__ = "0.1.0"
