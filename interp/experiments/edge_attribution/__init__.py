"""Through which edges between heads, MLPs and the logits does copying run, and how few of them suffice?"""
