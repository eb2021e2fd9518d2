// Words below the image: which steering painted what, and how long the image is.

// Pixels of the screen that a word needs.
const LEAST_ROOM = 60;

const byId = (id) => document.getElementById(id);
const thin = new Intl.NumberFormat("en", { useGrouping: true });

export class Marks {
  constructor(box) {
    this.box = box;
    this.clear();
  }

  clear() {
    this.steps = { left: [], right: [] }; // {x, text}, from the beginning outwards.
    this.photo = null;
    this.box.replaceChildren();
  }

  addPhoto(begin, end) {
    this.photo = { begin, end, text: "photograph" };
  }

  /** Notes that a steering begins at a place; returns whether it is another one than before. */
  add(side, x, text) {
    const steps = this.steps[side];
    if (steps.at(-1)?.text === text) return false;
    steps.push({ x, text });
    return true;
  }

  /** All ranges of one steering, from left to right. */
  #ranges(view) {
    const { left, right } = this.steps;
    const found = left.map((step, i) => ({ begin: left[i + 1]?.x ?? view.head.left, end: step.x, text: step.text })).reverse();
    if (this.photo) found.push(this.photo);
    right.forEach((step, i) => found.push({ begin: step.x, end: right[i + 1]?.x ?? view.head.right, text: step.text }));
    return found.filter(({ begin, end }) => end > begin);
  }

  /** What is painted at the edge that grows, and what is still to come there: [text, text or null]. */
  now(view) {
    const side = view.follow ?? "right";
    const sign = side === "right" ? 1 : -1;
    const shown = this.steps[side].filter((step) => sign * (view.head[side] - step.x) >= 0);
    return [shown.at(-1)?.text ?? "", this.steps[side][shown.length] ?? null];
  }

  /** Puts a word at the beginning of every range; that of a range which begins left of the screen stays at its border. */
  draw(view) {
    const room = LEAST_ROOM / view.scale;
    const visible = this.#ranges(view).filter(({ begin, end }) => end > view.x + room && begin < view.x + view.width);
    while (this.box.children.length < visible.length) this.box.append(document.createElement("span"));
    while (this.box.children.length > visible.length) this.box.lastChild.remove();
    visible.forEach(({ begin, end, text }, i) => {
      const word = this.box.children[i];
      if (word.textContent !== text) word.textContent = text;
      const from = Math.max(0, (begin - view.x) * view.scale);
      word.style.transform = `translateX(${from.toFixed(1)}px)`;
      word.style.maxWidth = `${Math.max(0, (end - view.x) * view.scale - from).toFixed(0)}px`;
    });
  }
}

/** Fills in what is painted, and how long the image is. */
export function fillFacts({ marks, view, tape, model }) {
  const [now, next] = marks.now(view);
  const columns = next ? Math.ceil(Math.abs(next.x - view.head[view.follow ?? "right"]) / model.column_width) : 0;
  const waits = view.isPaused ? "Paused" : `Painting ${now}`;
  setText("now", next ? `${next.text} comes in ${columns} columns` : now ? waits : "");
  const pixels = Math.round(view.head.right - view.head.left);
  setText("length", `${thin.format(pixels)} × ${tape.height} pixels`);
  if (Math.abs(pixels - (fillFacts.told ?? -999)) > 500) {
    fillFacts.told = pixels;
    byId("view").setAttribute("aria-label", `The image, ${pixels} pixels long so far; now ${now}`);
  }
}

function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}
