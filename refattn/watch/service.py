"""A small service over HTTP that measures itself: it generates with a GPT, embeds with a MiniLM, and serves /metrics.

Standard library only, a thread per connection, JSON in and out; an example of `refattn.watch.monitor`, not a product.
"""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

from refattn.arrays import check_count
from refattn.costs.calibration import Calibration
from refattn.costs.hardware import Hardware
from refattn.dispatch import REFERENCE, Unsupported, load
from refattn.models.gpt import GPT
from refattn.models.minilm import MiniLM
from refattn.watch.counts import Predicted
from refattn.watch.monitor import Monitor
from refattn.watch.watched import WatchedGPT, WatchedMiniLM, gpt_costs, minilm_costs

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LARGEST = 1 << 20
"""Bytes of a request."""
MOST_TOKENS = 512
MOST_TEXTS = 256
SECONDS = 30.0
"""How long a connection may say nothing."""


class Service:
    """Networks behind a port; use it as a context manager, which serves until the block ends.

    Parameters
    ----------
    gpt : GPT, optional
        The bundled one unless given.
    minilm : MiniLM, optional
        Without one, nothing is embedded.
    backend : str
        Who computes.
    host, port
        Where to listen; port 0 takes a free one.
    registry : prometheus_client.CollectorRegistry, optional
        A new one unless given.
    predicted : function, Calibration or Hardware, optional
        The time of a pass of the GPT, as `Monitor` takes it.
    all_parts : bool
        As for `WatchedGPT`.

    Raises
    ------
    OSError
        If the port is taken.
    LookupError, ImportError
        For a backend that is not known, or what is not installed.

    Examples
    --------
    >>> from urllib.request import urlopen
    >>> with Service() as service:
    ...     with urlopen(service.url + "/metrics") as answer:
    ...         "refattn_info" in answer.read().decode()
    True
    """

    def __init__(
        self,
        gpt: GPT | None = None,
        minilm: MiniLM | None = None,
        *,
        backend: str = REFERENCE,
        host: str = "127.0.0.1",
        port: int = 0,
        registry: "CollectorRegistry | None" = None,
        predicted: Predicted | Calibration | Hardware | None = None,
        all_parts: bool = False,
    ) -> None:
        gpt = GPT.bundled() if gpt is None else gpt
        self.monitor = Monitor(gpt_costs(gpt), backend=backend, registry=_new(registry), predicted=predicted)
        self.registry = self.monitor.registry
        self.gpt = WatchedGPT(gpt, self.monitor, all_parts)
        self.backend, self.minilm = backend, None
        if backend != REFERENCE:
            load(backend)
        if minilm is not None:
            encoder = Monitor(minilm_costs(minilm), backend=backend, registry=self.registry, causal=False)
            self.minilm = WatchedMiniLM.of(minilm, encoder)
        if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port < 1 << 16:
            raise ValueError(f"service: port is {port!r}; wanted 0 to 65535")
        self._server = _listen(host, port, self)
        self.host, self.port = host, self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> "Service":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``{"prompt": text, "tokens": 20, "temperature": 0, "seed": 0}`` with ``{"text": ...}``.

        Raises
        ------
        TypeError, ValueError
            For what is missing, strange or out of range.
        """
        _fields("generate", asked, ("prompt",), ("tokens", "temperature", "seed"))
        prompt, tokens, temperature = asked["prompt"], asked.get("tokens", 20), asked.get("temperature", 0.0)
        if not isinstance(prompt, str) or not 1 <= len(prompt) <= MOST_TOKENS:
            raise ValueError(f"generate: prompt must be a text of 1 to {MOST_TOKENS} characters")
        check_count("generate", "tokens", tokens)
        if tokens > MOST_TOKENS:
            raise ValueError(f"generate: tokens is {tokens}; wanted at most {MOST_TOKENS}")
        self.gpt.encode(prompt)  # refuses a character that it has not, before anything is measured
        with self.monitor.cache(len(prompt) + tokens):
            text = self.gpt.generate(
                prompt, tokens, temperature=temperature, seed=asked.get("seed", 0), backend=self.backend
            )
        return {"text": text}

    def embed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``{"texts": [text, ...]}`` with ``{"vectors": [[...], ...]}``.

        Raises
        ------
        TypeError, ValueError, LookupError
            For what is missing or strange; LookupError where there is no MiniLM.
        """
        if self.minilm is None:
            raise LookupError("embed: this service has no MiniLM; start it with a model's folder")
        _fields("embed", asked, ("texts",), ())
        texts = asked["texts"]
        if (
            not isinstance(texts, list)
            or not 1 <= len(texts) <= MOST_TEXTS
            or not all(isinstance(x, str) for x in texts)
        ):
            raise ValueError(f"embed: texts must be a list of 1 to {MOST_TEXTS} texts")
        return {"vectors": self.minilm.embed(texts, backend=self.backend).tolist()}


def _new(registry: "CollectorRegistry | None") -> "CollectorRegistry | None":
    from refattn.costs.machine import need

    need("prometheus_client", "monitor", "refattn.watch.service")
    from prometheus_client import CollectorRegistry

    return CollectorRegistry() if registry is None else registry


def _fields(operation: str, asked: Any, needed: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    if not isinstance(asked, dict):
        raise TypeError(f"{operation}: the request is {type(asked).__name__}; wanted a JSON object")
    missing, strange = [x for x in needed if x not in asked], sorted(asked.keys() - {*needed, *allowed})
    if missing or strange:
        raise ValueError(f"{operation}: missing {missing}, unknown {strange}; wanted {[*needed, *allowed]}")


def _listen(host: str, port: int, service: Service) -> ThreadingHTTPServer:
    class Handler(_Handler):
        pass

    Handler.service = service
    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}") from error


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    def do_GET(self) -> None:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        if self.path.partition("?")[0] == "/metrics":
            self._send(200, generate_latest(self.service.registry), CONTENT_TYPE_LATEST)
        elif self.path == "/":
            self._json(200, {"GET": ["/metrics"], "POST": ["/generate", "/embed"]})
        else:
            self._json(404, {"error": f"no page {self.path}; there are: /, /metrics"})

    def do_POST(self) -> None:
        pages: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/generate": self.service.generate,
            "/embed": self.service.embed,
        }
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True  # its body is not read
            self._json(413 if length.isdecimal() else 411, {"error": f"wanted a body of at most {LARGEST} bytes"})
            return
        body = self.rfile.read(int(length))
        if self.path not in pages:
            self._json(404, {"error": f"no page {self.path}; there are: {', '.join(pages)}"})
            return
        try:
            answer = pages[self.path](json.loads(body, parse_constant=_no_constant))
        except (ValueError, TypeError, LookupError, Unsupported) as error:
            self._json(400, {"error": " ".join(str(error).split())})
            return
        self._json(200, answer)

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the metrics do."""


def _no_constant(name: str) -> float:
    raise ValueError(f"the request holds {name}; wanted finite numbers")
