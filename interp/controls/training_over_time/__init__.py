"""When in training does copying appear, and when does a token stop to be a glitch token? Kept checkpoints of one run."""
