"""Which components write the right token's logit?"""
