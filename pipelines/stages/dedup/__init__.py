"""Copies of images, found in bins of shared keys."""
