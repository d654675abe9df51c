"""What to do, and never how: pure decisions, driven alike by the runtime and the simulator."""
