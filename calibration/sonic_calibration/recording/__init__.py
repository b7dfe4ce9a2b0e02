"""Inputs and outputs of the submodels, recorded while example clips are generated."""
