"""The systems that one table chooses between, one file each."""
