"""First principles in plain torch, with no cleverness: the oracles that every fast path is tested against."""
