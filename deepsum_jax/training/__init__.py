"""From scenes to a parameter bundle, resumable at any moment."""
