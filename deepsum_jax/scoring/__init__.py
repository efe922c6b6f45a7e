"""Scores of scenes: one, many, and which."""
