"""A run's folder: its artifacts, results and samples, and how they are read back."""
