"""Asks any number of models and judges for an evaluation, item by item. It trains nothing."""
