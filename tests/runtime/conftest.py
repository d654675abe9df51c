"""Everything here launches; the runtime is imported once, outside any event loop."""

import dvrt.actors.launch  # noqa: F401
