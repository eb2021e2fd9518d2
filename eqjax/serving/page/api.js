// Requests to the server. All addresses are relative, so that the page works below any path of a proxy.

/** An answer other than success; status 0 means that there was none. */
export class ServerError extends Error {
  constructor(status, message, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached.");
  }
  if (answer.ok) return answer;
  let text = `The server answered ${answer.status}.`;
  try {
    text = (await answer.json()).error ?? text;
  } catch {
    // A proxy in between answers in its own way.
  }
  throw new ServerError(answer.status, text, Number(answer.headers.get("retry-after")) || 0);
}

async function read(answer, kind) {
  try {
    return await answer[kind]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The connection broke.");
  }
}

/** The description of the model. */
export async function describe() {
  return read(await ask("api/model"), "json");
}

/** The number of sessions and their bound. */
export async function status() {
  return read(await ask("api/status"), "json");
}

/** Begins a session; `photo` is a file, or null. */
export async function open(seed, photo, signal) {
  const request = photo
    ? { body: photo, headers: { "content-type": photo.type.startsWith("image/") ? photo.type : "application/octet-stream" } }
    : { body: JSON.stringify({ seed }), headers: { "content-type": "application/json" } };
  const answer = await ask(`api/sessions${photo ? `?seed=${seed}` : ""}`, { method: "POST", signal, ...request });
  return read(answer, "json");
}

/** The PNG file of a strip. */
export async function strip(session, side, index, steering, signal) {
  const query = new URLSearchParams(steering);
  return read(await ask(`api/sessions/${encodeURIComponent(session)}/${side}/${index}?${query}`, { signal }), "blob");
}

/** Ends a session, even while the page is left. */
export function close(session) {
  const address = `api/sessions/${encodeURIComponent(session)}/close`;
  if (!navigator.sendBeacon?.(address)) fetch(address, { method: "POST", keepalive: true }).catch(() => {});
}
