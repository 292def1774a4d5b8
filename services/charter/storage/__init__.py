"""Databases and files that more than one room keeps."""
