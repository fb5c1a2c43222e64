"""Can these tokens ever be the arg-max? Verdicts and widest margins of the output layer, by pool."""
