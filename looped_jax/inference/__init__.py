"""Serving a model: prefill, decoding with a cache, sampling, scoring of continuations."""
