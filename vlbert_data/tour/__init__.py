"""The world of the tour. Promise: scenes, captions and texts made on the spot, equal for equal seeds, from nothing."""
