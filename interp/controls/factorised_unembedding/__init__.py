"""How many tokens can never win when the output layer has few dimensions, and what does that cost?"""
