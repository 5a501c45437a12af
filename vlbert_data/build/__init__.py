"""The build: images in, shards out. Promise: killed at any moment and run again, it ends as if never interrupted."""
