// The page: joins what the visitor wants, what the painter gets, and what the screen shows.

import * as api from "./api.js";
import { Controls, randomSeed } from "./controls.js";
import { fillFacts, Marks } from "./marks.js";
import { decode, encode, fits, steeringAt } from "./link.js";
import { hideNotice, say, showNotice, toast } from "./notices.js";
import { OverviewBar } from "./overview.js";
import { Painter } from "./painter.js";
import { saveImage, tailOf } from "./save.js";
import { listenForKeys, listenForPhotos } from "./inputs.js";
import { Tape } from "./tape.js";
import { setUpTheme } from "./theme.js";
import { View } from "./view.js";

const byId = (id) => document.getElementById(id);
const stillness = matchMedia("(prefers-reduced-motion: reduce)");
// The next strip is asked for so many times its usual delay before it is needed.
const AHEAD = 1.6;
const LEAST_AHEAD = 0.35; // Seconds.

class Page {
  constructor(model) {
    this.model = model;
    this.view = new View(byId("view"), byId("glow"), { isStill: () => stillness.matches });
    this.bar = new OverviewBar(byId("overview"), this.view);
    this.marks = new Marks(byId("marks"), model);
    this.painter = new Painter({
      onPhoto: (blob) => this.#showPhoto(blob),
      onStrip: (...strip) => this.#addStrip(...strip),
      onState: (state) => this.#showState(state),
    });
    this.controls = new Controls(model, {
      onSteer: () => this.#steer(),
      onSeed: (seed) => this.begin({ seed, photo: this.painter.photo }),
      onPace: (columns) => (this.view.pace = columns * model.column_width),
    });
    this.view.onMove = () => this.#showEdges();
    this.#wire();
  }

  #wire() {
    byId("stage").style.setProperty("--most", `${4.4 * this.model.height}px`);
    byId("model-name").textContent = `${this.model.name}, ${this.model.height} pixels high, ${this.model.id}`;
    byId("pause").addEventListener("click", () => this.pause(!this.view.isPaused));
    byId("share").addEventListener("click", () => this.share());
    byId("save").addEventListener("click", () => this.save());
    byId("photo").addEventListener("click", () => byId("file").click());
    byId("to-left").addEventListener("click", () => this.view.goToEdge("left"));
    byId("to-right").addEventListener("click", () => this.view.goToEdge("right"));
    byId("help-button").addEventListener("click", () => byId("help").showModal());
    setUpTheme(byId("theme"), () => (this.view.isDirty = true));
    listenForPhotos(byId("file"), byId("drop"), (file) => this.takePhoto(file));
    listenForKeys(this, this.controls);
    addEventListener("hashchange", () => location.hash.slice(1) !== this.written && this.#beginFromAddress());
    addEventListener("pagehide", () => this.painter.close());
    addEventListener("pageshow", (event) => event.persisted && this.#showState({ kind: "expired" }));
    addEventListener("online", () => this.painter.retryNow());
  }

  /** Begins what the address prescribes, or something new. */
  start() {
    const label = Math.floor(Math.random() * this.model.classes.length);
    this.controls.show({ ...this.controls.steering, first_class: label, second_class: label });
    this.#beginFromAddress();
    let before = performance.now();
    const frame = (now) => {
      requestAnimationFrame(frame);
      if (this.tape) this.#frame(Math.min(0.25, (now - before) / 1000));
      before = now;
    };
    requestAnimationFrame(frame);
  }

  #beginFromAddress() {
    let link = null;
    try {
      link = decode(location.hash, this.model.classes.length);
    } catch (error) {
      toast(`The link is damaged: ${error.message}. This is another image.`);
    }
    if (!link) return this.begin({ seed: randomSeed() });
    if (link.model && link.model !== this.model.id) toast("This link was made with another model: the image will differ.");
    if (!link.photo) return this.begin({ seed: link.seed, steps: link.sides });
    this.painter.close();
    this.awaited = link;
    this.controls.showSeed(link.seed);
    showNotice({
      title: "This image began with a photograph",
      text: "A link holds the seed and the steering, but no photograph. Drop the same photograph here, and the image is the same.",
      buttons: [
        ["Choose the photograph", () => byId("file").click()],
        ["Begin without it", () => this.begin({ seed: link.seed })],
      ],
    });
    byId("waiting").hidden = true;
  }

  /** Begins another image. */
  begin({ seed, photo = null, steps = {} }) {
    this.awaited = null;
    this.#settleSteering();
    hideNotice();
    this.seed = seed;
    this.controls.showSeed(seed);
    this.tape?.close();
    this.tape = new Tape(this.model.height, () => (this.view.isDirty = true));
    this.marks.clear();
    this.isContinued = false;
    this.keptSides = null;
    this.hasPhoto = Boolean(photo);
    this.view.show(this.tape, photo ? [] : ["right"]);
    if (this.view.isPaused) this.pause(false);
    this.isFirstFill = true;
    this.written = null;
    byId("waiting").hidden = false;
    const first = steeringAt(steps.right ?? [], 0);
    if (first) this.controls.show(first);
    this.#showEdges();
    return this.painter.open(seed, photo, { steps });
  }

  #settleSteering() {
    const label = this.controls.mainClass;
    this.controls.show({ ...this.controls.steering, first_class: label, second_class: label, mix: 0 });
  }

  /** Continues a photograph to both sides. */
  takePhoto(file) {
    if (!file) return;
    if (file.type && !file.type.startsWith("image/")) return toast(`${file.name} is no image.`);
    if (file.size > this.model.max_upload_bytes) {
      return toast(`The photograph is larger than ${Math.round(this.model.max_upload_bytes / 2 ** 20)} MB.`);
    }
    const link = this.awaited;
    this.begin({ seed: link?.seed ?? this.seed, photo: file, steps: link?.sides });
  }

  async #showPhoto(blob) {
    // The first strip begins with the photograph's last column, faded into what follows.
    if (this.isContinued) return this.tape.overlap(this.model.column_width);
    await this.tape.add("right", blob);
    this.marks.addPhoto(this.tape.left, this.tape.right);
    this.view.show(this.tape, this.painter.session.sides);
    byId("waiting").hidden = true;
    this.#write();
  }

  async #addStrip(side, blob, index, steering) {
    const tape = this.tape;
    await tape.add(side, blob);
    if (tape !== this.tape) return;
    if (tape.parts.length === 1) byId("waiting").hidden = true;
    const isPrescribed = this.painter.isPrescribed(side, index);
    if (isPrescribed) this.controls.show(steering);
    else if (side === (this.view.follow ?? "right")) this.controls.advance();
    // A steering governs what the decoder will need for the strip: it shows so many columns later.
    const edge = side === "right" ? tape.right - this.model.strip_width : tape.left + this.model.strip_width;
    const delay = index ? this.model.lookahead_columns * this.model.column_width : 0;
    const place = side === "right" ? edge + delay : edge - delay;
    if (this.marks.add(side, place, this.controls.describe(steering))) {
      if (index) this.view.hurry(side, place + (side === "right" ? 1 : -1) * this.model.strip_width);
      this.#write();
    }
    tape.trim(this.view.x + this.view.width / 2);
    this.view.isDirty = true;
  }

  #steer() {
    this.painter.forgetPrescribed();
    say(this.controls.describe(this.controls.steering));
  }

  #showState({ kind, message, seconds }) {
    document.body.dataset.state = kind;
    const again = ["Try now", () => this.painter.retryNow()];
    const another = ["Begin a new image", () => this.begin({ seed: randomSeed() })];
    if (kind === "painting" || kind === "opening") return hideNotice();
    byId("waiting").hidden = true;
    if (kind === "full") {
      showNotice({ title: "All places are taken", text: `${message} You are let in as soon as somebody leaves.`, seconds, buttons: [again] });
      api.status().then(({ sessions, max_sessions: most }) => {
        if (this.painter.state === "full") byId("notice-text").textContent = `${sessions} of ${most} places are painting. You are let in as soon as somebody leaves.`;
      }, () => {});
    } else if (kind === "offline") {
      showNotice({ title: "No connection", text: `${message} The image goes on when it is back.`, seconds, buttons: [again] });
    } else if (kind === "expired") {
      const goOn = ["Go on from here", () => this.continueFromHere()];
      showNotice({
        title: "The pause was too long",
        text: "The server has let this image go. It can be continued from its right end as a photograph would be.",
        buttons: this.tape.isEmpty ? [another] : [goOn, another],
      });
    } else if (kind === "refused" || kind === "failed") {
      showNotice({ title: this.hasPhoto ? "This photograph cannot be continued" : "The image cannot go on", text: message, buttons: [another] });
    }
  }

  /** Continues the end of the image in a new session. */
  async continueFromHere() {
    const tail = await tailOf(this.tape, this.model);
    if (!tail) return this.begin({ seed: randomSeed() });
    hideNotice();
    this.isContinued = true;
    this.keptSides ??= this.painter.recorded;
    this.view.sides = ["right"];
    await this.painter.open(this.seed, tail);
    this.view.goToEdge("right");
  }

  pause(isPaused) {
    this.view.isPaused = isPaused;
    this.view.isDirty = true;
    const button = byId("pause");
    button.setAttribute("aria-pressed", String(isPaused));
    button.setAttribute("aria-label", isPaused ? "Paint on" : "Pause");
    button.querySelector("use").setAttribute("href", isPaused ? "#icon-play" : "#icon-pause");
    say(isPaused ? "Paused." : "Painting.");
  }

  // ── Links and files ─────────────────────────────────────────────────────────────────────────

  get link() {
    const sides = this.keptSides ?? this.painter.recorded;
    return encode({ seed: this.seed, model: this.model.id, photo: this.hasPhoto, sides });
  }

  /** Keeps the address up to date, so that reloading shows the same image. */
  #write() {
    if (this.isContinued) return;
    this.written = this.link;
    history.replaceState(null, "", `#${this.written}`);
  }

  async share() {
    const address = new URL(`#${this.link}`, location.href).href;
    const limits = [];
    if (this.hasPhoto) limits.push("It does not hold the photograph");
    if (this.isContinued) limits.push("It holds the image up to the interruption");
    if (!fits(this.painter.recorded)) limits.push("It holds only the first part of the steering");
    try {
      await navigator.clipboard.writeText(address);
      toast(["The link is copied", ...limits].join(". ") + ".");
    } catch {
      showNotice({ title: "Link to this image", text: address, buttons: [["Close", hideNotice]] });
    }
  }

  async save() {
    const { begin, end, isWhole } = await saveImage(this.tape, this.view, this.seed, new URL(`#${this.link}`, location.href).href);
    if (end === begin) toast("There is nothing to save yet.");
    else toast(`Saved ${end - begin} × ${this.model.height} pixels.${isWhole ? "" : " Parts that the page has let go are missing."}`);
  }

  // ── Every frame ─────────────────────────────────────────────────────────────────────────────

  #frame(seconds) {
    const { view, painter } = this;
    for (const side of painter.session?.sides ?? []) {
      const isDue = () => view.secondsLeft(side) < Math.max(LEAST_AHEAD, AHEAD * painter.latency);
      if (!view.isPaused && view.sides.includes(side) && view.wants(side) && painter.canAsk(side) && isDue()) {
        painter.ask(side, this.controls.steering);
      }
    }
    view.step(seconds);
    if (this.isFirstFill && !view.isFilling && !this.tape.isEmpty) {
      this.isFirstFill = false;
      if (stillness.matches) this.pause(true);
    }
    if (!view.isDirty) return;
    view.draw();
    this.bar.draw();
    this.marks.draw(view);
    fillFacts(this, seconds);
  }

  #showEdges() {
    const { view } = this;
    const isLost = view.follow === null && !view.isFilling && !view.rest && view.pointer === undefined;
    for (const side of ["left", "right"]) byId(`to-${side}`).hidden = !(isLost && view.sides.includes(side));
  }
}

async function main() {
  try {
    new Page(await api.describe()).start();
  } catch (error) {
    byId("waiting").hidden = true;
    showNotice({ title: "No connection", text: error.message, buttons: [["Try again", () => location.reload()]] });
    if (!(error instanceof api.ServerError)) throw error;
  }
}

main();
