"""A study: several ways to align one model, from one start and on the same labelled pairs. No torch in here."""
