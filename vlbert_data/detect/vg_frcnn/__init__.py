"""The parts of the Visual Genome Faster R-CNN. Promise: each is a plain function or module, tested by itself."""
