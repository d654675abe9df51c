"""The OpenAI API over HTTP, and what operators ask: health, metrics, status.

Nothing below this package knows HTTP; it knows an engine only as ``dvrt.serve.served`` says.
"""
