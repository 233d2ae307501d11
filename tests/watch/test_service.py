"""The service, over HTTP on this machine: what it answers, what it refuses, and what its /metrics say afterwards."""

import http.client
import importlib.util
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import refattn
from refattn import dispatch
from refattn.models.gpt import GPT
from refattn.models.minilm import MiniLM
from refattn.watch import labels, watched
from refattn.watch.monitor import Monitor
from refattn.watch.service import Service

PROMPTS = ("def ", "attention(q, k, v", "    return ", "a")


def post(service, page, asked):
    """Return (status, answer) of a request; `asked` may be bytes."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    try:
        with urlopen(Request(service.url + page, body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def scrape(service):
    """Return {(name, label values but the backend's and the mechanism's ...): value} and all labels."""
    with urlopen(service.url + "/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode()
    found, seen = {}, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = tuple(sample.labels[x] for x in ("phase", "component", "le") if x in sample.labels)
            found[(sample.name, *key)] = sample.value
            for label, value in sample.labels.items():
                seen.setdefault(label, set()).add(value)
    return found, seen


@pytest.fixture
def service():
    with Service(all_parts=True) as running:
        yield running


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a small MiniLM with drawn weights."""
    path = Path(__file__).parents[1] / "models" / "tiny_bert.py"
    spec = importlib.util.spec_from_file_location("tiny_bert_for_the_service", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write(tmp_path_factory.mktemp("models") / "tiny")


def test_the_texts_are_those_of_the_gpt(service):
    gpt = GPT.bundled()
    for prompt in PROMPTS:
        status, answer = post(service, "/generate", {"prompt": prompt, "tokens": 9, "temperature": 0.7, "seed": 3})
        assert (status, answer) == (200, {"text": gpt.generate(prompt, 9, temperature=0.7, seed=3)})


def test_requests_at_once_are_each_counted(service):
    asked = [{"prompt": PROMPTS[n % 4], "tokens": 3 + n % 5, "seed": n} for n in range(24)]
    scrapes, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            scrapes.append(scrape(service)[0].get(("refattn_sequence_length_count", "prefill"), 0))
            time.sleep(0.01)

    reader = threading.Thread(target=read)
    reader.start()
    start = time.perf_counter()
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda one: post(service, "/generate", one), asked))
    elapsed = time.perf_counter() - start
    stop.set()
    reader.join()
    assert [(status, len(answer["text"])) for status, answer in answers] == [(200, one["tokens"]) for one in asked]
    assert scrapes == sorted(scrapes), "a counter fell"

    found, seen = scrape(service)
    steps = sum(one["tokens"] - 1 for one in asked)
    for component in labels.COMPONENTS:
        assert found["refattn_component_seconds_count", "prefill", component] == 24, component
        assert found["refattn_component_seconds_count", "decode", component] == steps, component
    assert found["refattn_sequence_length_count", "prefill"] == 24
    assert found["refattn_sequence_length_count", "decode"] == steps
    assert found["refattn_sequence_length_sum", "prefill"] == sum(len(one["prompt"]) for one in asked)
    model = watched.gpt_costs(GPT.bundled())
    flops = sum(model.forward_flops(1, len(one["prompt"]))["total"] for one in asked)
    assert found["refattn_flops_total", "prefill"] == flops
    spent = sum(value for key, value in found.items() if key[0] == "refattn_component_seconds_sum")
    assert 0 < spent <= 6 * elapsed, "six threads cannot spend more"
    for phase in labels.PHASES[:2]:
        assert 0 < found["refattn_attention_time_ratio", phase] < 1
    assert found["refattn_kv_cache_bytes",] == 0
    assert seen["component"] <= set(labels.COMPONENTS) and seen["phase"] <= {"prefill", "decode"}
    assert seen["backend"] == {"numpy"} <= set(dispatch.backends()) and seen["mechanism"] == {"softmax"}
    assert seen["version"] == {refattn.__version__}


def test_a_slow_machine_moves_the_drift(monkeypatch):
    gpt = GPT.bundled()
    with Service(gpt, predicted=lambda phase, batch, seq: 2e-3) as service:

        def ask(n):
            assert post(service, "/generate", {"prompt": "def ", "tokens": n})[0] == 200
            return scrape(service)[0]["refattn_predicted_seconds_ratio", "decode"]

        before = ask(30)
        compute = service.gpt._logits
        monkeypatch.setattr(
            service.gpt, "_logits", lambda *given, **more: (time.sleep(0.03), compute(*given, **more))[1]
        )
        after = ask(30)
    assert after > before + 5
    assert gpt.generate("def ", 3) == GPT.bundled().generate("def ", 3)


def test_another_gpt_of_the_process_is_not_measured(service):
    plain = GPT.bundled()
    plain.generate("def ", 5)
    assert ("refattn_sequence_length_count", "decode") not in scrape(service)[0]


def test_embeddings_are_those_of_the_minilm(tiny):
    minilm = MiniLM.load(tiny)
    texts = ["hello", "attention is all you need", "hello hello hello"]
    with Service(minilm=minilm) as service:
        status, answer = post(service, "/embed", {"texts": texts})
        found, _ = scrape(service)
    assert status == 200
    np.testing.assert_array_equal(np.array(answer["vectors"], np.float32), minilm.embed(texts))
    assert found["refattn_sequence_length_count", "prefill"] == 1
    for component, times in (("attention", 1), ("norm", 1), ("ffn", 1)):
        assert found["refattn_component_seconds_count", "prefill", component] == times
    longest = max(len(minilm.tokenizer.encode(text)) for text in texts)
    longest = min(longest, minilm.max_tokens)
    flops = watched.minilm_costs(minilm).forward_flops(3, longest, causal=False)["total"]
    assert found["refattn_flops_total", "prefill"] == flops


def test_few_parts_are_measured_unless_all_are_asked_for():
    with Service() as service:
        post(service, "/generate", {"prompt": "def ", "tokens": 3})
        _, seen = scrape(service)
    assert seen["component"] == {"attention", "embedding", "head", "other"}


REFUSED = {
    "no prompt": ("/generate", {"tokens": 3}, 400, "missing ['prompt']"),
    "an unknown field": ("/generate", {"prompt": "a", "token": 3}, 400, "unknown ['token']"),
    "an empty prompt": ("/generate", {"prompt": ""}, 400, "1 to 512 characters"),
    "a number as prompt": ("/generate", {"prompt": 5}, 400, "must be a text"),
    "no tokens": ("/generate", {"prompt": "a", "tokens": 0}, 400, "tokens is 0; wanted at least 1"),
    "too many tokens": ("/generate", {"prompt": "a", "tokens": 10**9}, 400, "wanted at most 512"),
    "tokens as text": ("/generate", {"prompt": "a", "tokens": "3"}, 400, "tokens must be an integer"),
    "a strange character": ("/generate", {"prompt": "a☃"}, 400, "SNOWMAN"),
    "a negative temperature": ("/generate", {"prompt": "a", "temperature": -1}, 400, "temperature is -1"),
    "an infinite temperature": ("/generate", b'{"prompt": "a", "temperature": Infinity}', 400, "holds Infinity"),
    "a list": ("/generate", ["a"], 400, "wanted a JSON object"),
    "no JSON": ("/generate", b"{", 400, "Expecting property name"),
    "no UTF-8": ("/generate", b'{"prompt": "\xff"}', 400, "can't decode byte"),
    "another page": ("/train", {"prompt": "a"}, 404, "no page /train"),
    "no MiniLM": ("/embed", {"texts": ["a"]}, 400, "has no MiniLM"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, service):
    page, asked, status, words = REFUSED[what]
    got, answer = post(service, page, asked)
    assert got == status and words in answer["error"] and "\n" not in answer["error"]
    assert ("refattn_sequence_length_count", "prefill") not in scrape(service)[0], "nothing was computed"
    assert post(service, "/generate", {"prompt": "a", "tokens": 1})[0] == 200


def test_a_body_that_is_too_large_is_not_read(service):
    connection = http.client.HTTPConnection(service.host, service.port, timeout=10)
    for length, status in (("2097152", 413), ("-1", 411), ("many", 411)):
        connection.putrequest("POST", "/generate")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        with connection.getresponse() as answer:
            assert answer.status == status and "1048576" in json.load(answer)["error"]
        connection.close()


def test_other_pages(service):
    with urlopen(service.url + "/", timeout=10) as answer:
        assert json.load(answer) == {"GET": ["/metrics"], "POST": ["/generate", "/embed"]}
    with pytest.raises(HTTPError, match="404"):
        urlopen(service.url + "/nothing", timeout=10)


def test_texts_that_are_none_are_refused(tiny):
    with Service(minilm=MiniLM.load(tiny)) as service:
        for texts in ([], "hello", [3], ["a"] * 257):
            status, answer = post(service, "/embed", {"texts": texts})
            assert status == 400 and "list of 1 to 256 texts" in answer["error"]


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"cannot listen on 127.0.0.1, port \d+: Address already in use"):
            Service(port=taken.getsockname()[1])
    with pytest.raises(ValueError, match="port is 70000"):
        Service(port=70000)
    with pytest.raises(LookupError, match="no backend 'nump'"):
        Service(backend="nump")


def test_a_gpt_without_attention_is_refused():
    class Other:
        class config:
            mixer = "mamba"

    with pytest.raises(ValueError, match="mixer of this GPT is mamba"):
        Service(Other())


def test_rebound_functions():
    def f(x):
        return [abs(y) for y in x]

    changed = watched.rebound(f, abs=lambda y: -y)
    assert (changed([1, -2]), f([1, -2])) == ([-1, 2], [1, 2])
    with pytest.raises(LookupError, match="f does not use sin"):
        watched.rebound(f, sin=abs)
    with pytest.raises(TypeError, match="wanted a Python function"):
        watched.rebound(abs)


def test_what_is_computed_stays_bit_for_bit():
    gpt, registry = GPT.bundled(), CollectorRegistry()
    tokens = gpt.encode("def attention(q, k, v):")
    for all_parts in (False, True):
        same = watched.WatchedGPT(gpt, Monitor(watched.gpt_costs(gpt), registry=registry), all_parts)
        np.testing.assert_array_equal(same.logits(tokens), gpt.logits(tokens))
        np.testing.assert_array_equal(same.logits(tokens, backend="numba"), gpt.logits(tokens, backend="numba"))
    assert same.logits(tokens[:0]).shape == (0, len(gpt.config.vocabulary))
