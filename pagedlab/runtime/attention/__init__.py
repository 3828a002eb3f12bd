"""Attention over a paged KV cache: one signature, one file a backend."""
