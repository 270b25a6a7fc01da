"""Schemes, integer arithmetic (the reference semantics), shared-parameter groups."""
