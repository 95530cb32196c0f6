"""Code that clients of other projects run for an exported model; nothing here imports JAX."""
