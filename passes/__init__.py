"""The built-in passes, imported as `qir.passes`: one file a pass or fusion family.

They use only what a plug-in can use, and are found the way a plug-in is found: by the entry-point group `qir.passes`.
"""
