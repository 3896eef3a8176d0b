/* The same request as a person would send it: curl, and the openai client. Adds `snippets` to the global `T3D`. */
"use strict";
{
  const EXTENSIONS = ["steps_per_block", "rule", "threshold", "entropy_bound"]; // not the client's own arguments

  function curl(request) {
    return [
      `curl ${quoted(T3D.address(request.path))} \\`,
      "  -H 'Content-Type: application/json' \\",
      ...(request.hasKey ? ['  -H "Authorization: Bearer $T3D_API_KEY" \\'] : []),
      `  -d ${quoted(JSON.stringify(request.body))}`,
    ].join("\n");
  }

  /** A text as one word of a shell. */
  function quoted(text) {
    return `'${text.replaceAll("'", "'\\''")}'`;
  }

  function python(request) {
    const isChat = "messages" in request.body;
    const fields = Object.entries(request.body);
    const own = fields.filter(([name]) => !EXTENSIONS.includes(name));
    const extra = fields.filter(([name]) => EXTENSIONS.includes(name));
    const key = request.hasKey ? 'os.environ["T3D_API_KEY"]' : '"none"';
    return [
      ...(request.hasKey ? ["import os", ""] : []),
      "from openai import OpenAI",
      "",
      `client = OpenAI(base_url=${literal(T3D.address("v1"))}, api_key=${ key })`,
      `answer = client.${isChat ? "chat.completions" : "completions"}.create(`,
      ...own.map(([name, value]) => `    ${name}=${literal(value)},`),
      `    extra_body=${literal(Object.fromEntries(extra))},`,
      ")",
      `print(answer.choices[0].${isChat ? "message.content" : "text"})`,
      "",
    ].join("\n");
  }

  /** A value as Python writes it; JSON's strings and numbers are Python's too. */
  function literal(value) {
    if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
    if (value === null) return "None";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value !== "object") return JSON.stringify(value);
    return `{${Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each)}`).join(", ")}}`;
  }

  T3D.snippets = { curl, python };
}
