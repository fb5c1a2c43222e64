"""Does under-training make attention glitches more frequent? Registers of tokens that were read at known doses."""
