"""Through which paths do earlier heads serve the induction heads, and on which tokens?"""
