"""``python -m sstune`` is ``sstune``."""

import sys

from sstune.cli import main

sys.exit(main())
