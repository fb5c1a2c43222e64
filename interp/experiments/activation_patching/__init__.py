"""Where does a run on one pool differ from a run on another, in a way that matters for copying?"""
