"""Scenes whose truth is known: invented ground, steady or changing, and real dates degraded."""
