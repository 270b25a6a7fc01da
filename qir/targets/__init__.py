"""Targets: what a runtime fuses, runs fast and forbids, as data."""

from qir.targets.target import Form, OpRule, Target, WeightRange

__all__ = ["Form", "OpRule", "Target", "WeightRange"]
