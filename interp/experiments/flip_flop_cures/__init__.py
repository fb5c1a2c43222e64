"""What cures attention glitches, and what does each cure cost? Sharper attention, and other training."""
