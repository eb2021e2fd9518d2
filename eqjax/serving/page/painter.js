// Asks for strips, one at a time and side, as late as the screen allows; and deals with everything that a server answers.

import * as api from "./api.js";
import { record, steeringAt } from "./link.js";

// Seconds after which a lost connection is tried again, one after another.
const PATIENCE = [1, 2, 4, 8, 15];

export class Painter {
  /**
   * A painter without a session.
   * `hooks`: onStrip(side, blob, index, steering), onState(state) with {kind, message, seconds}, onPhoto(blob).
   */
  constructor(hooks) {
    this.hooks = hooks;
    this.session = null;
    this.latency = 0.3;
    this.#reset();
  }

  #reset() {
    this.aborter?.abort();
    this.aborter = new AbortController();
    clearTimeout(this.timer);
    if (this.session) api.close(this.session.id);
    this.session = null;
    this.next = { right: 0, left: 0 };
    this.isAsking = { right: false, left: false };
    this.notBefore = 0;
    this.failures = 0;
    this.state = "idle";
  }

  /** Begins a session, with a photograph or without; waits for a place if the server is full. */
  async open(seed, photo, { steps = {} } = {}) {
    this.#reset();
    const { signal } = this.aborter;
    this.seed = seed;
    this.photo = photo;
    // What a link prescribes, and what was used: the steps at which the steering changes.
    this.prescribed = { right: steps.right ?? [], left: steps.left ?? [] };
    this.recorded = { right: [], left: [] };
    this.#report("opening");
    const begin = async () => {
      try {
        const session = await api.open(seed, photo, signal);
        if (signal.aborted) return api.close(session.id);
        this.session = session;
        this.failures = 0;
        if (session.photo) await this.hooks.onPhoto(fromBase64(session.photo));
        this.#report("painting");
      } catch (error) {
        if (signal.aborted) return;
        const seconds = this.#delay(error);
        if (error.status === 503) this.#report("full", error.message, seconds);
        else if (error.status === 0) this.#report("offline", error.message, seconds);
        else return this.#report("refused", error.message);
        this.retry = begin;
        this.timer = setTimeout(begin, 1000 * seconds);
      }
    };
    await begin();
  }

  /** Tries again now what waits for its time. */
  retryNow() {
    clearTimeout(this.timer);
    this.notBefore = 0;
    if (!this.session) this.retry?.();
  }

  /** Whether a side can be asked for its next strip. */
  canAsk(side) {
    return this.session?.sides.includes(side) && !this.isAsking[side] && !["expired", "failed"].includes(this.state) && performance.now() >= this.notBefore;
  }

  /** Asks for the next strip of a side; `steering` counts unless a link prescribes another one. */
  async ask(side, steering) {
    const [session, index, begin] = [this.session, this.next[side], performance.now()];
    const { signal } = this.aborter;
    const used = this.isPrescribed(side, index) ? steeringAt(this.prescribed[side], index) : { ...steering };
    this.isAsking[side] = true;
    try {
      const blob = await api.strip(session.id, side, index, used, signal);
      if (signal.aborted) return;
      this.latency += 0.3 * ((performance.now() - begin) / 1000 - this.latency);
      record(this.recorded[side], index, used);
      this.next[side] = index + 1;
      this.failures = 0;
      await this.hooks.onStrip(side, blob, index, used);
      if (!signal.aborted && this.state !== "painting") this.#report("painting");
    } catch (error) {
      if (signal.aborted) return;
      this.#fail(error);
    } finally {
      if (!signal.aborted) this.isAsking[side] = false;
    }
  }

  /** Whether a link prescribes the steering of a strip: up to the last one where it changes. */
  isPrescribed(side, index) {
    const steps = this.prescribed[side];
    return steps.length > 0 && index <= steps[steps.length - 1].index;
  }

  /** From now on the visitor steers. */
  forgetPrescribed() {
    this.prescribed = { right: [], left: [] };
  }

  #fail(error) {
    if (error.status === 410 || error.status === 409) {
      this.#report("expired", error.message);
      return;
    }
    const seconds = this.#delay(error);
    this.notBefore = performance.now() + 1000 * seconds;
    if (error.status === 0) this.#report("offline", error.message, seconds);
    else if (error.status === 503) this.#report("busy", error.message, seconds);
    else if (this.failures > 3 || error.status < 500) this.#report("failed", error.message);
  }

  #delay(error) {
    const seconds = PATIENCE[Math.min(this.failures, PATIENCE.length - 1)];
    this.failures += 1;
    return error.retryAfter || seconds;
  }

  #report(kind, message = "", seconds = 0) {
    this.state = kind;
    this.hooks.onState({ kind, message, seconds });
  }

  /** Ends the session. */
  close() {
    this.#reset();
  }
}

function fromBase64(text) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}
