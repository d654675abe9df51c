"""Models as stages: checkpoints, their cutting, their KV arena, and the drawing of tokens."""
