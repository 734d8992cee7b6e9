"""Datasets, how they are read, and what is done to an image on the way to the network."""
