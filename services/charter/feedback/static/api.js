// Calls to the page's server. A failed one throws CallError; status 0 is a connection that is not there.

export class CallError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  // The same call can succeed later.
  get temporary() {
    return this.status === 0 || this.status >= 500 || this.status === 408 || this.status === 429;
  }
}

const LOST = "The connection is lost.";

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError(0, LOST);
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new CallError(response.status, body.error || `The server answered ${response.status}.`);
  }
  return response;
}

const posting = (body, signal) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

export async function get(path) {
  return (await request(path, {})).json();
}

export async function post(path, body = {}, options = {}) {
  return (await request(path, { ...posting(body), ...options })).json();
}

// Events of a streamed answer, one for each line.
export async function* stream(path, body, signal) {
  const response = await request(path, posting(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new CallError(0, LOST);
    }
    if (part.done) return;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}
