"""Unrolled back-projection: the parts of the system `unrolled`."""
