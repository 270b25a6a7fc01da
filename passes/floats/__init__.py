"""Passes that exchange one floating-point type for another."""
