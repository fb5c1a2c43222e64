"""Which tokens of the vocabulary are under-trained? Indicators, detection, verification and, where known, the truth."""
