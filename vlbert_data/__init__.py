"""Making: from images and captions, or from features people already have, to shards. Knows no model of ours."""

__version__ = "0.1.0"
