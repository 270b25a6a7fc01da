"""Targets: what a runtime fuses, runs fast and forbids, as data."""

from qir.targets.target import Constraints, Form, OpRule, Target, WeightRange

__all__ = ["Constraints", "Form", "OpRule", "Target", "WeightRange"]
