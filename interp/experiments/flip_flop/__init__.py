"""How often does a model misread a register, and why? Errors on the flip-flop language, each with its cause."""
