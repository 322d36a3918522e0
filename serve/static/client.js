// Asks the server that this page came from, as any client of OpenAI's interface does.

/** What went wrong, in words that can be shown; `status` is 0 where no answer came. */
export class Failure extends Error {
  constructor(words, status = 0) {
    super(words);
    this.status = status;
  }
}

/** The model that is served, with what the server's policy allows. */
export async function served(key) {
  const response = await request("v1/models", { headers: headers(key) });
  return (await response.json()).data[0];
}

/** A streamed completion: `on` gets each piece as it comes. */
export async function ask(body, key, signal, on) {
  const sent = { method: "POST", headers: headers(key), body: JSON.stringify({ ...body, stream: true }), signal };
  sent.headers["Content-Type"] = "application/json";
  const response = await request("v1/chat/completions", sent);
  let done = false;
  for await (const line of lines(response.body, signal)) {
    if (!line.startsWith("data: ")) continue;
    const data = line.slice("data: ".length);
    done = data === "[DONE]";
    if (done) break;
    const piece = JSON.parse(data);
    if (piece.error) throw new Failure(piece.error.message, 500);
    on(piece);
  }
  if (!done) throw new Failure("The answer broke off: the connection to the server was lost.");
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer. Is it running, and reachable from here?");
  }
  if (response.ok) return response;
  throw new Failure(await words(response), response.status);
}

async function words(response) {
  let said = `It answered with status ${response.status}.`;
  try {
    said = (await response.json()).error.message;
  } catch {
    // a proxy between, which does not speak OpenAI's interface
  }
  if (response.status === 401) return `The server asks for an API key. ${said}`;
  if (response.status === 413) return `The message is too large. ${said}`;
  const wait = response.headers.get("Retry-After");
  if (response.status === 429) return `The server is busy. Try again${wait ? ` in ${wait} s` : ""}.`;
  return response.status >= 500 ? `The server failed. ${said}` : `The server refused the request. ${said}`;
}

async function* lines(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Failure("The answer broke off: the connection to the server was lost.");
    }
    if (read.done) return;
    const parts = (rest + read.value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
