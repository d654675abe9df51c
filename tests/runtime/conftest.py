"""Everything here launches; the runtime is imported once, outside any event loop."""

import dvrt.cluster.launch  # noqa: F401
