"""`python -m geomtx` is the command line."""

import sys

from geomtx.cli import main

if __name__ == "__main__":
    sys.exit(main())
