"""Finds the layers to pin."""
