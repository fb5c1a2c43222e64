"""Which heads of the copying circuit fail on these tokens, and what do the attention and cargo of each account for?"""
