"""When in training does copying appear, and when does a token stop being a glitch token? Kept checkpoints of a run."""
