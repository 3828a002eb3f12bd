"""Attention over a paged KV cache: one signature, one file a backend."""

from pagedlab.runtime.attention.base import AttentionBackend, AttentionContext, AttentionMetadata, FunctionBackend
from pagedlab.runtime.attention.registry import select_backend

__all__ = ["AttentionBackend", "AttentionContext", "AttentionMetadata", "FunctionBackend", "select_backend"]
