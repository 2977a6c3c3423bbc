"""Rules that drop captions and rows, each with the name of its reason."""
