"""Layer 1: how people reach the engine."""
