"""Runnable experiments on top of `deepsum_jax`: `python -m experiments NAME`, in a checkout."""
