"""Are a few activations far larger than all others, where are they, and what breaks without them?"""
