"""``python -m requant``."""

import sys

from requant.cli import main

sys.exit(main())
