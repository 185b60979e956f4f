"""`python -m spotinference.devcluster.simengine serve MODEL …`."""

from __future__ import annotations

import sys

from spotinference.devcluster.simengine.process import main

sys.exit(main(sys.argv[1:]))
