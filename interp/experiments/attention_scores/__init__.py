"""Which heads look where a copying circuit must look?"""
