"""Why does an induction head attend where it does: which components wrote its score?"""
