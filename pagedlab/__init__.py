"""pagedlab: an LLM inference engine with a paged KV cache, built chapter by chapter."""
