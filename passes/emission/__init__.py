"""Passes that turn annotations into nodes: QDQ, QOperator, dynamic, weight-only and codebook forms."""
