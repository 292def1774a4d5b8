"""The whole road for real, as docs/road.md tells it: from a base model to an aligned one."""
