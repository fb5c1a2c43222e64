"""Which identities hold on this model that analyses rest on? `experiment.py` tests them, `view.py` shows them."""
