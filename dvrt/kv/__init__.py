"""The KV cache as a model of its own: logs, layouts and plans; pure, no asyncio, no torch."""
