"""Does a model that reads one token again and again lose count of it, because each repeat looks like a first token?"""
