"""Critique and revision, the supervised stage of Constitutional AI (Bai et al. 2022, arXiv 2212.08073, section 3)."""
