"""Are embedding rows that look identical the same, or made so by rounding? Distances, beside the storing error."""
