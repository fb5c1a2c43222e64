"""How much is each head worth to copying, alone and together with heads of the same kind?"""
