"""``dvrt rebalance``: changes the split of a pipeline that serves, over its HTTP side."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError, DvrtError, Unavailable
from dvrt.options import make_options

LIMIT_S = 600.0
"""The other side ends a change that takes too long before this."""


def rebalance(
    *,
    url: Annotated[str, typer.Argument(metavar="URL", help="where it serves")],
    prompt_stages: Annotated[
        int | None, typer.Option("--prompt-stages", help="stages for prompts")
    ] = None,
    token_stages: Annotated[
        int | None, typer.Option("--token-stages", help="stages for tokens")
    ] = None,
    stages: Annotated[int | None, typer.Option("--stages", help="stages for both")] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="DVRT_API_KEY", help="key of the server")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Change how many stages serve at URL, without stopping a request."""
    given = {"prompt_stages": prompt_stages, "token_stages": token_stages, "stages": stages}
    split = {name: count for name, count in given.items() if count is not None}
    if set(split) not in ({"stages"}, {"prompt_stages", "token_stages"}):
        raise ConfigError("give --prompt-stages and --token-stages, or --stages")
    make_options(LaunchOptions, {"model": "any", **split})
    _post(f"{url.rstrip('/')}/admin/rebalance", split, api_key)
    print("serving with", ", ".join(f"{count} {_words(name)}" for name, count in split.items()))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _post(url: str, body: dict[str, int], api_key: str | None) -> None:
    """Raises ConfigError for an address that cannot be, DvrtError with what the server says."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"URL is {url!r}; expected http://HOST:PORT")
    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            raise DvrtError(_message(error.read(), error.code)) from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{url}: {error}") from None


def _message(body: bytes, status: int) -> str:
    try:
        told: Any = json.loads(body)
        return str(told["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}"
