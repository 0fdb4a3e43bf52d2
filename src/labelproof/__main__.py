"""`python -m labelproof`."""

import sys

from labelproof.cli import main

sys.exit(main())
