"""Does an induction head match a token that is only close to the one seen, in the embedding or in writing?"""
