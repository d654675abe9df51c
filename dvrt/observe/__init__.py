"""Watching dvrt: metrics, traces and logs; knows nothing of what it watches."""
