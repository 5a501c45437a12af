"""Learning: from shards and text to a model. Knows no image file and no detector."""
