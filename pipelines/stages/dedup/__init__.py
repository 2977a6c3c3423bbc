"""Duplicates and near-duplicates of images, found in bins of shared keys."""
