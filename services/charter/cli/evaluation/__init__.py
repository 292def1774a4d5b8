"""`charter evaluate`."""
