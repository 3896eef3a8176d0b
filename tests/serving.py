"""A server in a thread, for tests that talk to it over a real socket."""

import functools
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import torch

from t3d import models
from t3d.engine import Engine
from t3d.serve import ModelOptions, Service, Settings, serving
from t3d.serve.models import serve_model, warm_up
from t3d.types import Decoding

torch.set_num_threads(1)

QUESTION = "Anna has 21 stamps. She sells 4 of them. She gets 14 more. How many stamps does Anna have now?"
PROMPT = f"Question: {QUESTION}\nAnswer:"
COMPLETION = {"model": "story-mini", "prompt": PROMPT, "max_tokens": 16}
LONG = {**COMPLETION, "max_tokens": 900}
"""For an endless server."""
CHAT = {"model": "story-mini", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}


@functools.cache
def loaded(name):
    """A built-in model and its tokenizer."""
    return models.load_model(name, device="cpu"), models.load_tokenizer(name)


@functools.cache
def plain_engine(name="story-mini"):
    """The reference engine that answers are held against."""
    return Engine(*loaded(name), backend="plain")


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: of the server.
        service: behind it, to look into.
        http: a client that knows the address.
    """

    url: str
    service: Service
    http: httpx.Client

    def post(self, fields, path="/v1/completions", **options):
        """Send JSON."""
        return self.http.post(path, json=fields, **options)

    def load(self, name="story-mini"):
        """Answers running and waiting, and the share of pages in use."""
        load = self.service.models[name].engine.load()
        return load.num_running, load.num_waiting, load.share_of_pages_in_use

    def metric(self, line):
        """The figure that follows the beginning of a line of /metrics; 0 where there is none."""
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(each[len(line) :]) for each in lines if each.startswith(line + " ")), 0.0)

    def num_open(self, name="story-mini"):
        """Answers that were let in and are not over."""
        return self.service.num_open(self.service.models[name])

    def wait_until_idle(self, seconds=10):
        """Wait until nothing runs, waits or holds memory."""
        wait_for(lambda: self.load() == (0, 0, 0.0), seconds)


def wait_for(holds, seconds=10):
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def assert_error(response, status, message, **fields):
    """An error in OpenAI's shape."""
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(error[name] == value for name, value in fields.items())


def last_event(response):
    """What the last event of a stream says."""
    *_, last = response.text.strip().split("\n\n")
    return json.loads(last.removeprefix("data: "))


@contextmanager
def story_server(*names, defaults=None, max_batch_size=8, tokenizer=None, endless=False, listener=None, **limits):
    """Built-in models behind a server; `limits` are fields of `Settings`. Endless ones know no stop token."""
    settings = Settings(**limits)
    served = []
    for name in names or ("story-mini",):
        model, own_tokenizer = loaded(name)
        options = ModelOptions(max_batch_size=max_batch_size)
        served.append(serve_model(name, model, tokenizer or own_tokenizer, defaults or Decoding(), options))
        warm_up(served[-1])
        if endless:
            served[-1].engine.stop_token_ids = ()
    service = Service(served, settings.max_waiting, settings.request_timeout)
    with serving(service, settings, listener) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield Running(url, service, http)
