"""``python -m refattn`` is the command ``refattn``."""

import sys

from refattn.cli import main

if __name__ == "__main__":
    sys.exit(main())
