"""Passes, pipelines, registry, instruments and remarks."""
