"""Runnable experiments on top of `deepsum_jax`: one file each, nothing imports them."""
