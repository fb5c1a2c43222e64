"""How much probability do tokens that should never come hold, and what does a model say after one of them?"""
