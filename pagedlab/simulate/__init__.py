"""The same ideas without tensors: cost models, allocators, virtual memory, batching."""
