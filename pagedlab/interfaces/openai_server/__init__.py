"""Layer 1 over HTTP: OpenAI's routes, the API layer (keys, limits, admission), and AsyncLLMEngine behind them."""
