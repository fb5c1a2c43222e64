"""Can the rows of tokens that are not copied be rewritten so that they are, and what does it do to ordinary text?"""
