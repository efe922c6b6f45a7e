"""Stacks larger than memory: read, super-resolved and written window by window."""
