"""Why does copying fail on these tokens? The deficit against ordinary tokens, split into identity and stages (nats)."""
