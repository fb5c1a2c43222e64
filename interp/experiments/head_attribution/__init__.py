"""Which heads matter, by gradients, and how far can that be trusted? Screening beside the exact sweep."""
