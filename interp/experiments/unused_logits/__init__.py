"""How likely can a token ever become? The largest logit, log-prob and probability of a pool's tokens, and where."""
