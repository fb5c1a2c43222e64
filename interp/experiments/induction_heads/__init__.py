"""Which heads make up the copying circuit, by where they look and by what their weights say?"""
