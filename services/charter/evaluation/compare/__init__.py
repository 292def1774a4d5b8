"""Any number of models on held-out prompts: the spec, what is stored, and the figures of it."""
