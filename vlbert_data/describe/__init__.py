"""Describing RoIs: (image, boxes) to features. Promise: the same features for an image whatever batch it came in."""
