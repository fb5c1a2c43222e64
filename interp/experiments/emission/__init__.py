"""How much probability do tokens that should never occur receive, and what does a model generate after one of them?"""
