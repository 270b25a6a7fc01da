"""Fuzzing of everything that reads what others wrote: model files, IR text, pipeline text, sample archives, recipes."""
