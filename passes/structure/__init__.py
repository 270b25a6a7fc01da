"""Passes that change what a graph is made of, not what it computes: clean-up, folding, fusion, opsets."""
