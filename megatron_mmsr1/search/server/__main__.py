"""`python -m megatron_mmsr1.search.server`."""

from megatron_mmsr1.search.server.main import main

raise SystemExit(main())
