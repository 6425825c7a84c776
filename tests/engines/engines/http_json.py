"""JSON over HTTP/1.1, with the standard library."""

import http.client
import json
import time
from typing import Any, Final
from urllib.parse import urlsplit

SECONDS_MAX: Final = 180.0
"""Longest wait for one answer: on a busy machine a cold prompt takes seconds."""


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text[:600]}")
        self.status = status


def call(method: str, url: str, body: Any = None, seconds: float = SECONDS_MAX) -> tuple[Any, dict[str, str]]:
    """The answer's body (JSON where it is JSON, else text) and its headers in lower case.

    Raises ``Refused`` for a status of 400 or above and ``OSError`` when nobody answers.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=seconds)
    try:
        data = None if body is None else json.dumps(body).encode()
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status >= 400:
            raise Refused(response.status, text)
        is_json = "json" in headers.get("content-type", "")
        return (json.loads(text) if is_json and text else text), headers
    except http.client.HTTPException as fault:
        raise ConnectionError(f"{method} {url}: {fault!r}") from fault
    finally:
        connection.close()


def answers(url: str) -> bool:
    """Whether a GET is answered with success."""
    try:
        call("GET", url, seconds=2.0)
    except (OSError, Refused):
        return False
    return True


def first_byte_seconds(url: str, body: Any) -> float:
    """Seconds from sending a streaming request to the first event of its answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=SECONDS_MAX)
    try:
        begun = time.monotonic()
        connection.request("POST", parts.path, json.dumps(body).encode(), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status >= 400:
            raise Refused(response.status, response.read().decode(errors="replace"))
        while line := response.readline():
            # vLLM sends the role before it computed anything: the first token is what counts.
            if line.startswith(b"data:") and b'"logprobs":{' in line.replace(b" ", b""):
                seconds = time.monotonic() - begun
                response.read()
                return seconds
        raise ConnectionError(f"{url}: a stream without tokens")
    finally:
        connection.close()
