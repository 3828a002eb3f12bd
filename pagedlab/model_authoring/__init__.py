"""Layer 2: what runs next, and on which memory."""
