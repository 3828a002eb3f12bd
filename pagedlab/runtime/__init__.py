"""Layer 3: where it runs: device, KV tensors, forward pass, sampling."""
