"""How often must a token have been trained on to be copied, and to look trained? Canaries and natural tokens."""
