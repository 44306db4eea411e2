"""The name that programs outside the package know; the fetcher is `web/fetch.py`."""

from megatron_mmsr1.search.web.fetch import *  # noqa: F403
from megatron_mmsr1.search.web.fetch import fetch as fetch
