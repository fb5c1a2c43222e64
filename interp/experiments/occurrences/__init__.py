"""How often does each token occur in a text, and do those that are detected as under-trained occur at all?"""
