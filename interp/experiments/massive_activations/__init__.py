"""Are a few activations far larger than all others, where do they stand, and what breaks without them?"""
