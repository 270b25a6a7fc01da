"""`python -m qir`: the command line without its script on the path."""

import sys

from qir.cli import main

sys.exit(main())
