"""`python -m megatron_mmsr1.cli`."""

import sys

from megatron_mmsr1.cli import main

sys.exit(main())
