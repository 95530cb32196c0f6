"""One file per sweep; each defines get_sweep(), see looped_jax/training/sweep.py."""
