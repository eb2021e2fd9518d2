// The screen: a camera over the tape, the edges at which the image is being painted, and the hands that move it.

// Where on the screen the edge stays while the image grows, as a share of the width.
const EDGE_PLACE = 0.86;
// How much faster an edge moves over an empty screen, and until a new steering shows.
const FILLING = 5;
const HURRY = 2.5;
// Seconds in which a fling loses most of its speed.
const FRICTION = 0.35;
const STEP = 0.18; // Of the width: an arrow key.
const REST = 2.5; // Seconds for which a photograph stays in the middle, with both sides painted.

export class View {
  /** A view in a canvas; `glow` is a tiny canvas that is stretched behind everything. */
  constructor(canvas, glow, { isStill }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.glow = glow.getContext("2d");
    this.source = new OffscreenCanvas(1, 1).getContext("2d");
    this.isStill = isStill; // Whether the visitor prefers no motion.
    this.pace = 64;
    this.isPaused = false;
    this.isDirty = true;
    this.onMove = () => {};
    this.#listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  /** Shows another tape, with edges at its ends; `sides` are those that can grow. */
  show(tape, sides) {
    this.tape = tape;
    this.sides = sides;
    this.head = { left: tape.left, right: tape.right };
    this.follow = sides.length === 1 ? sides[0] : null;
    this.isFilling = true;
    this.speed = 0;
    this.rest = 0;
    this.hurryUntil = { left: null, right: null };
    this.resize();
    this.x = sides.includes("left") ? (tape.left + tape.right - this.width) / 2 : 0;
    this.isDirty = true;
  }

  /** Adapts to the size of the canvas. */
  resize() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    if (!this.tape) return;
    const center = this.width ? this.x + this.width / 2 : null;
    this.scale = this.canvas.clientHeight / this.tape.height;
    this.width = this.canvas.clientWidth / this.scale;
    if (center !== null && this.follow === null) this.x = center - this.width / 2;
    this.isDirty = true;
  }

  /** Moves edges and camera by the time since the last frame. */
  step(seconds) {
    if (!this.tape) return;
    this.#grow(seconds);
    const before = this.x;
    if (this.pointer === undefined && this.speed) {
      this.x += this.speed * seconds;
      this.speed *= Math.exp(-seconds / FRICTION);
      if (Math.abs(this.speed) < 2) this.#settle();
    } else if (this.pointer === undefined && this.goal !== undefined) {
      this.x += (this.goal - this.x) * Math.min(1, 7 * seconds);
      if (Math.abs(this.goal - this.x) < 0.5) this.#settle();
    } else if (this.follow && this.pointer === undefined) {
      const place = this.follow === "right" ? EDGE_PLACE : 1 - EDGE_PLACE;
      const wanted = this.head[this.follow] - place * this.width;
      // A camera that is not at its edge yet glides there.
      const gap = wanted - this.x;
      this.x += Math.abs(gap) < 1.5 * this.#rate(this.follow) * seconds + 0.01 ? gap : gap * Math.min(1, 5 * seconds);
    }
    // A photograph stays in the middle until both sides of the screen are painted.
    if (!this.isFilling || this.sides.length < 2) this.x = this.#clamp(this.x);
    if (this.x !== before) {
      this.isDirty = true;
      this.onMove();
    }
  }

  #grow(seconds) {
    if (this.isPaused) return;
    for (const side of this.sides) {
      const sign = side === "right" ? 1 : -1;
      if (!this.wants(side)) continue;
      const [limit, before] = [this.tape[side], this.head[side]];
      const next = before + sign * this.#rate(side) * seconds;
      this.head[side] = this.isStill() ? limit : sign > 0 ? Math.min(next, limit) : Math.max(next, limit);
      if (this.head[side] !== before) this.isDirty = true;
      const until = this.hurryUntil[side];
      if (until !== null && sign * (this.head[side] - until) >= 0) this.hurryUntil[side] = null;
    }
    if (this.isFilling && this.sides.every((side) => this.#emptiness(side) <= 0)) {
      this.isFilling = false;
      if (this.follow === null) this.rest = REST;
    }
    if (this.rest > 0 && (this.rest -= seconds) <= 0) this.goToEdge("right");
  }

  /** Share of the screen that a side has still to fill. */
  #emptiness(side) {
    const place = this.follow ? EDGE_PLACE : 1;
    const gap = side === "right" ? this.x + place * this.width - this.head.right : this.head.left - this.x - (1 - place) * this.width;
    return gap / this.width;
  }

  #rate(side) {
    const filling = 1 + (FILLING - 1) * Math.min(1, Math.max(0, 4 * this.#emptiness(side)));
    return this.pace * Math.max(filling, this.hurryUntil[side] === null ? 1 : HURRY);
  }

  /** Whether somebody watches a side grow. */
  wants(side) {
    return this.follow === side || this.#emptiness(side) > 0;
  }

  /** Seconds until the edge of a side has shown everything that is there. */
  secondsLeft(side) {
    return Math.abs(this.tape[side] - this.head[side]) / this.#rate(side);
  }

  /** Hurries until a side has been painted up to a place. */
  hurry(side, place) {
    this.hurryUntil[side] = place;
  }

  #clamp(x) {
    const [first, last] = [this.head.left, this.head.right];
    const least = this.sides.includes("left") ? first - (1 - EDGE_PLACE) * this.width : first;
    const most = last - EDGE_PLACE * this.width;
    if (most < least) return this.sides.includes("left") ? (first + last - this.width) / 2 : least;
    return Math.min(Math.max(x, least), most);
  }

  /** Follows an edge again, if the camera has come to it. */
  #settle() {
    this.speed = 0;
    this.goal = undefined;
    if (this.isFilling) return;
    const reach = 0.12 * this.width;
    const atRight = this.x + EDGE_PLACE * this.width >= this.head.right - reach;
    const atLeft = this.sides.includes("left") && this.x + (1 - EDGE_PLACE) * this.width <= this.head.left + reach;
    this.follow = atRight ? "right" : atLeft ? "left" : null;
    this.onMove();
  }

  /** Glides to a place: the middle of the screen will be there. */
  glideTo(place) {
    this.rest = 0;
    this.follow = null;
    this.speed = 0;
    this.goal = this.#clamp(place - this.width / 2);
    if (this.isStill()) {
      this.x = this.goal;
      this.#settle();
    }
    this.isDirty = true;
  }

  /** Goes to the beginning: where the left side grows, if there is one. */
  goToBeginning() {
    if (this.sides.includes("left")) this.goToEdge("left");
    else this.glideTo(this.tape.left + this.width / 2);
  }

  /** Goes to an edge, and follows it. */
  goToEdge(side) {
    this.rest = 0;
    this.goal = undefined;
    this.speed = 0;
    this.follow = side;
    this.isDirty = true;
    this.onMove();
  }

  /** Scrolls by a share of the width. */
  scroll(share) {
    this.glideTo((this.goal ?? this.x) + this.width / 2 + share * this.width);
  }

  // ── Drawing ─────────────────────────────────────────────────────────────────────────────────

  /** Draws the screen, if anything has changed. */
  draw() {
    if (!this.tape || !this.isDirty) return;
    this.isDirty = false;
    const { canvas, context, tape } = this;
    const zoom = canvas.height / tape.height;
    // The pixels are joined at the model's resolution first: enlarged one by one, parts would show seams.
    const first = this.sides.includes("left") ? -Infinity : tape.left;
    const begin = Math.max(Math.floor(this.x) - 2, first);
    const count = Math.ceil(this.width) + 5;
    if (this.source.canvas.width !== count || this.source.canvas.height !== tape.height) {
      Object.assign(this.source.canvas, { width: count, height: tape.height });
    }
    tape.draw(this.source, begin, begin + count);
    this.#erase(begin);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.source.canvas, (begin - this.x) * zoom, 0, count * zoom, canvas.height);
    this.#drawGlow();
  }

  /** Stretching the glow over the page costs more than the image: a few times a second are enough. */
  #drawGlow() {
    const now = performance.now();
    if (now - (this.glowTime ?? 0) < 200) return;
    this.glowTime = now;
    const { width, height } = this.glow.canvas;
    this.glow.imageSmoothingQuality = "high";
    this.glow.clearRect(0, 0, width, height);
    this.glow.drawImage(this.source.canvas, 0, 0, width, height);
  }

  /** Hides what is beyond the edges, which fade out over a fifth of the height. */
  #erase(begin) {
    const { source, tape } = this;
    const end = begin + source.canvas.width;
    const soft = this.isStill() || this.isPaused ? 0 : tape.height / 5;
    source.globalCompositeOperation = "destination-out";
    for (const side of this.sides) {
      const [head, sign] = [this.head[side] - begin, side === "right" ? 1 : -1];
      const gradient = source.createLinearGradient(head - sign * Math.max(soft, 0.01), 0, head, 0);
      gradient.addColorStop(0, "transparent");
      gradient.addColorStop(1, "black");
      source.fillStyle = gradient;
      if (sign > 0) source.fillRect(head - soft, 0, end - begin, tape.height);
      else source.fillRect(0, 0, head + soft, tape.height);
    }
    source.globalCompositeOperation = "source-over";
  }

  // ── Hands ───────────────────────────────────────────────────────────────────────────────────

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.tape) return;
      canvas.setPointerCapture(event.pointerId);
      this.pointer = { id: event.pointerId, x: event.clientX, time: event.timeStamp };
      this.speed = 0;
      this.rest = 0;
      this.goal = undefined;
      this.follow = null;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.pointer?.id) return;
      const moved = (this.pointer.x - event.clientX) / this.scale;
      const seconds = Math.max(event.timeStamp - this.pointer.time, 1) / 1000;
      this.speed += 0.5 * (moved / seconds - this.speed);
      this.pointer = { id: event.pointerId, x: event.clientX, time: event.timeStamp };
      this.#push(moved);
    });
    const release = (event) => {
      if (event.pointerId !== this.pointer?.id) return;
      const isResting = event.timeStamp - this.pointer.time > 100;
      this.pointer = undefined;
      if (isResting || this.isStill()) this.speed = 0;
      if (Math.abs(this.speed) < 2) this.#settle();
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!this.tape || event.ctrlKey) return;
        const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
        if (!sideways && !event.shiftKey) return; // Up and down scroll the page.
        event.preventDefault();
        this.rest = 0;
        this.goal = undefined;
        this.follow = null;
        this.#push((sideways ? event.deltaX : event.deltaY) / this.scale);
        this.#settle();
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.tape) return;
      const act = {
        ArrowLeft: () => this.scroll(-STEP),
        ArrowRight: () => this.scroll(STEP),
        PageUp: () => this.scroll(-0.9),
        PageDown: () => this.scroll(0.9),
        Home: () => this.goToBeginning(),
        End: () => this.goToEdge("right"),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
  }

  #push(distance) {
    this.x = this.#clamp(this.x + distance);
    this.isDirty = true;
    this.onMove();
  }
}
