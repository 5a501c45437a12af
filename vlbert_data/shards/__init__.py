"""Shard files. Promise: what was written is read back to the bit, as views of the mapped file, in both containers."""
