"""The helper package behind the AffinityNet notebooks: image tags in, pixel masks out."""

__version__ = "0.1.0"
