"""How much memory the processes of a run take, computed from the models before any is loaded."""
