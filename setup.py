"""The package list, found rather than written down; everything else about the build stands in pyproject.toml.

`passes` and `golden_models` live beside `qir` in the tree and are installed inside of it, so that nothing called
`passes` lands in site-packages.
"""

from setuptools import find_packages, setup

ROOTS = {"qir": "qir", "qir.passes": "passes", "qir.golden_models": "golden_models"}

setup(
    package_dir=ROOTS,
    packages=[
        name for root, folder in ROOTS.items() for name in (root, *(f"{root}.{p}" for p in find_packages(folder)))
    ],
)
