"""Rewriting: the pattern language, rules, the worklist driver, and the small edits they are built of."""
