"""Which heads make up the copying circuit, by their attention and by their weights?"""
