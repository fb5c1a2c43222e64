"""Do the findings about a bundled model hold for others that were trained in the same way from other seeds?"""
