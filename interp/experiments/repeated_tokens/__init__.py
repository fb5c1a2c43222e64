"""How well does a model predict the second copy of a random block, and does it depend on the tokens?"""
