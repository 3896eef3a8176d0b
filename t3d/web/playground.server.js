/* Talking to the server: models, streams of events, and errors that a person can read. Adds to the global `T3D`. */
"use strict";
{
  const GONE = "the connection to the server ended before the answer was complete";
  const EVENTS = "text/event-stream";
  const EXCERPT = 80; // characters shown of what should not have come

  /** What went wrong, in the server's words; `status` is the HTTP status, 0 where there was none. */
  class ServerError extends Error {
    constructor(message, status = 0) {
      super(message);
      this.status = status;
    }
  }

  /** Address below the page's own, so that a prefix of a reverse proxy stays. */
  function address(path) {
    return new URL(path, document.baseURI.split("#")[0]).href;
  }

  /** GET, or POST of a body; an answer that is no success is thrown as a `ServerError`. */
  async function ask(path, { body, key, signal } = {}) {
    const headers = {};
    if (key) headers.Authorization = `Bearer ${ key }`;
    if (body) headers["Content-Type"] = "application/json";
    const method = body ? "POST" : "GET";
    let response;
    try {
      response = await fetch(address(path), { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("the server cannot be reached: is it still running?");
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  async function refusal(response) {
    const status = `status ${response.status} ${response.statusText}`.trimEnd();
    const message = reason(await json(response)) ?? `the server refused with ${status} and gave no reason`;
    const wait = response.headers.get("Retry-After");
    return new ServerError(wait ? `${message} (try again in ${wait} s)` : message, response.status);
  }

  /** The body of an answer, which something between us and the server may have sent; null: it is not JSON. */
  async function json(response) {
    return response.json().catch(() => null);
  }

  /** The words of an error in JSON, ours or a proxy's; undefined: there are none. */
  function reason(body) {
    const words = body?.error?.message ?? body?.error;
    return typeof words === "string" && words ? words : undefined;
  }

  /** The served models, as `/v1/models` lists them. */
  async function models(key) {
    const body = await json(await ask("v1/models", { key }));
    if (!body?.data?.length) throw new ServerError(`${address("v1/models")} lists no models: is it a server of t3d?`);
    return body.data;
  }

  /** The events of a streamed answer; throws unless the server says that it was all. */
  async function* stream(path, body, key, signal) {
    const response = await ask(path, { body, key, signal });
    const kind = response.headers.get("Content-Type") ?? "nothing known";
    if (!kind.startsWith(EVENTS)) throw new ServerError(`the answer is no stream of events but ${kind}`, response.status);
    for await (const data of messages(response.body)) {
      if (data === "[DONE]") return;
      const event = parsed(data);
      if (event.error) throw new ServerError(reason(event) ?? "the server failed and gave no reason");
      yield event;
    }
    throw new ServerError(GONE);
  }

  function parsed(data) {
    try {
      return JSON.parse(data);
    } catch {
      throw new ServerError(`the server sent an event that is not JSON: ${data.slice(0, EXCERPT)}`);
    }
  }

  /** The data of each server-sent message; whoever stops listening closes the connection. */
  async function* messages(bytes) {
    const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await read(reader);
        if (done) return;
        const parts = (rest + value).split(/\r?\n\r?\n/);
        rest = parts.pop();
        for (const part of parts) {
          const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
          if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
        }
      }
    } finally {
      reader.cancel().catch(() => {}); // it may be closed already
    }
  }

  async function read(reader) {
    try {
      return await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(GONE);
    }
  }

  Object.assign(T3D, { ServerError, address, models, stream });
}
