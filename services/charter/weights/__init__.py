"""Versioned weight transfer: one safetensors file in chunks, checked whole before anything changes."""
