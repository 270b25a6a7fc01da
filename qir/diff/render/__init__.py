"""Renderers of a GraphDiff: terminal text, Markdown for a pull request, one HTML file."""
