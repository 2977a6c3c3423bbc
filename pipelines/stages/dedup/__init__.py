"""Copies of pictures, found in bins of shared keys."""
