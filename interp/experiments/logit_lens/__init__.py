"""After which layer does the model know the token that it has seen before?"""
