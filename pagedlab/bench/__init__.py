"""`pagedlab bench`: the engine and its kernels against peers and against the physical limit."""
