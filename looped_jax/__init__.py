"""Training, evaluating and understanding looped transformers in JAX."""
