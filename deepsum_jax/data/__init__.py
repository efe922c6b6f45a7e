"""Data: scenes, where they come from, and what is invented to train on."""
