"""Learned tokens per second of supervised fine-tuning, against others that learn the same tokens."""
