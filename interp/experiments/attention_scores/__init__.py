"""Which heads attend where a copying circuit must attend?"""
