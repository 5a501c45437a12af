"""Finding RoIs. Promise: boxes in pixels of the oriented original, each with a proper class distribution."""
