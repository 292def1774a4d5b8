"""How the preference model is fitted."""
