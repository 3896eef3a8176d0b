"""A server that answers the playground by a script: for what a well-behaved one does not do on demand."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from t3d.web import page

DEFAULTS = {
    "steps_per_block": 4,
    "rule": "low_confidence_static",
    "threshold": 0.9,
    "temperature": 0.0,
    "max_tokens": 16,
}
PROMPT_TOKENS = 5
FACTS = {
    "prompt_tokens": PROMPT_TOKENS,
    "block_size": 4,
    "steps_per_block": 4,
    "rule": "low_confidence_static",
    "threshold": 0.9,
    "seed": 0,
}


def error(message):
    """An error as the server words it."""
    return {"error": {"message": message, "type": "t", "param": None, "code": None}}


def event(text="", **choice):
    """An event of a chat's stream."""
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [delta]}


def block(*tokens):
    """A finished block; its tokens are (text, reveal step, confidence)."""
    texts, steps, confidences = map(list, zip(*tokens, strict=True))
    ids = list(range(10, 10 + len(tokens)))
    trajectory = {"token_ids": ids, "tokens": texts, "reveal_steps": steps, "confidences": confidences}
    return event("".join(texts), trajectory=trajectory)


BEGIN = event(t3d=FACTS)
FIRST = block((" one", 2, 0.5), (" two", 1, 0.25), (" three", 3, 1.0))
"""With five prompt tokens, the first block has three of the response."""
SECOND = block((" a", 4, 0.9), (" b", 5, 0.8), (" c", 5, 0.7), (" d", 6, 0.6))
END = event(t3d={**FACTS, "forwards": 8, "tokens_per_forward": 0.875, "seconds": 0.5}, finish_reason="stop")


class Stub:
    """What the handler does, and what it saw.

    Attributes:
        key: asked for, if any.
        script: (send, body) -> None, for each generation; `send` takes an event.
        refusal: (status, message, headers) for each generation, in place of the script; a message that is not a text
            but bytes is the whole body.
        bodies: of the generations asked for.
        has_left: set when a client is gone before its answer was over.
        may_go_on: scripts wait for it where they like to; set at the end.
        may_list: the list of models waits for it.
        listed: the body of the list, in place of the models.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        self.key = self.refusal = self.listed = None
        self.script = tell(BEGIN, FIRST, SECOND, END)
        self.bodies = []
        self.has_left, self.may_go_on, self.may_list = threading.Event(), threading.Event(), threading.Event()
        self.may_list.set()


def tell(*events, whole=True):
    """A script that sends these events; not whole: and hangs up then."""

    def script(send, body):
        for each in events:
            send(each)
        if whole:
            send("[DONE]")

    return script


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub = None

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path == "/":
            self._answer(200, page("playground").encode(), "text/html; charset=utf-8")
        elif self._is_let_in():
            self.stub.may_list.wait(10)
            model = {"block_size": 4, "max_positions": 64, "has_chat_template": False, "defaults": DEFAULTS}
            other = {**model, "block_size": 8}
            served = [{"id": "m", "t3d": model}, {"id": "<b>wide</b>", "t3d": other}]
            listed = self.stub.listed or json.dumps({"object": "list", "data": served}).encode()
            self._answer(200, listed)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_let_in():
            return
        self.stub.bodies.append(body)
        if self.stub.refusal:
            status, message, headers = self.stub.refusal
            content = message if isinstance(message, bytes) else json.dumps(error(message)).encode()
            self._answer(status, content, **headers)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self.stub.script(self._send, body)
        except OSError:
            self.stub.has_left.set()

    def _send(self, each):
        self.wfile.write(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n".encode())
        self.wfile.flush()

    def _is_let_in(self):
        if self.stub.key is None or self.headers["Authorization"] == f"Bearer {self.stub.key}":
            return True
        self._answer(401, json.dumps(error("the API key is wrong")).encode())
        return False

    def _answer(self, status, content, kind="application/json", **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving():
    """A stub and its address, for as long as it serves."""
    stub = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": stub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub, f"http://127.0.0.1:{server.server_port}/"
    finally:
        stub.may_go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
