"""Learning from labels that are there, without sampling: DPO on comparisons, KTO on thumbs."""
