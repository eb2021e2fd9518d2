// The image so far: its parts as PNG files, those near the screen decoded. Both are bounded, so that a page may stay open.

// Bytes of files that are kept; the parts farthest from the screen are let go beyond that.
export const MAX_BYTES = 48 * 2 ** 20;
// Pixels of parts that are decoded at the same time.
const MAX_DECODED_PIXELS = 8e6;
const OVERVIEW_WIDTH = 4096;
const OVERVIEW_HEIGHT = 32;

export class Tape {
  /** An empty image; `onDecoded` is called when another part can be drawn. */
  constructor(height, onDecoded) {
    this.height = height;
    this.left = 0;
    this.right = 0;
    this.bytes = 0;
    this.parts = [];
    this.overview = new Overview(height);
    this.onDecoded = onDecoded;
  }

  get isEmpty() {
    return this.left === this.right;
  }

  /** Appends a part to a side. */
  async add(side, blob) {
    const bitmap = await decode(blob);
    const x = side === "left" ? this.left - bitmap.width : this.right;
    const part = { x, width: bitmap.width, end: x + bitmap.width, blob, bitmap, isDecoding: false };
    if (side === "left") this.parts.unshift(part);
    else this.parts.push(part);
    this.left = Math.min(this.left, part.x);
    this.right = Math.max(this.right, part.end);
    this.bytes += blob.size;
    this.overview.add(part);
    return part;
  }

  /** Draws the pixels from `begin` to `end` at the left border of a context, as far as they are decoded. */
  draw(context, begin, end) {
    context.clearRect(0, 0, context.canvas.width, this.height);
    for (const part of this.parts) {
      if (part.end <= begin || part.x >= end) continue;
      if (part.bitmap) {
        context.drawImage(part.bitmap, part.x - begin, 0);
      } else {
        this.overview.draw(context, part.x, part.end, part.x - begin, 0, part.width, this.height);
        this.#decode(part);
      }
    }
  }

  /** Has the next part on the right lie over the last pixels of what is there. */
  overlap(pixels) {
    this.right -= pixels;
  }

  /** Lets go what is farthest from a place, until the rest is within its bounds. */
  trim(place) {
    const distance = (part) => Math.max(part.x - place, place - part.end, 0);
    const near = [...this.parts].sort((a, b) => distance(a) - distance(b));
    let [bytes, pixels] = [0, 0];
    for (const part of near) {
      pixels += part.width * this.height;
      if (part.bitmap && pixels > MAX_DECODED_PIXELS) {
        part.bitmap.close();
        part.bitmap = null;
      }
      bytes += part.blob?.size ?? 0;
      if (part.blob && bytes > MAX_BYTES) {
        this.bytes -= part.blob.size;
        part.blob = null;
      }
    }
  }

  /** The ends of the longest range around a place that is still whole. */
  wholeRange(place) {
    let middle = this.parts.findIndex((part) => part.end > place);
    if (middle < 0) middle = this.parts.length - 1;
    if (middle < 0 || !this.parts[middle].blob) return [0, 0];
    let [first, last] = [middle, middle];
    while (this.parts[first - 1]?.blob) first--;
    while (this.parts[last + 1]?.blob) last++;
    return [this.parts[first].x, this.parts[last].end];
  }

  /** Calls a function with the pixels of every part in a range, one after another. */
  async forEachPart(begin, end, use) {
    for (const part of this.parts) {
      if (part.end <= begin || part.x >= end) continue;
      const bitmap = await decode(part.blob);
      const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(bitmap, 0, 0);
      bitmap.close();
      const [from, to] = [Math.max(part.x, begin), Math.min(part.end, end)];
      use(from, context.getImageData(from - part.x, 0, to - from, canvas.height));
    }
  }

  async #decode(part) {
    if (part.isDecoding || !part.blob) return;
    part.isDecoding = true;
    part.bitmap = await decode(part.blob);
    part.isDecoding = false;
    this.onDecoded();
  }

  /** Frees everything. */
  close() {
    for (const part of this.parts) part.bitmap?.close();
    this.parts = [];
  }
}

function decode(blob) {
  return createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

/** The whole image at a small size, which is halved whenever it would become wider than its canvas. */
class Overview {
  constructor(height) {
    this.height = height;
    this.canvas = new OffscreenCanvas(OVERVIEW_WIDTH, OVERVIEW_HEIGHT);
    this.context = this.canvas.getContext("2d");
    this.scale = OVERVIEW_HEIGHT / height;
    this.origin = 0; // The pixel of the image at the left border of the canvas.
    this.begin = 0;
    this.end = 0;
  }

  add(part) {
    this.begin = Math.min(this.begin, part.x);
    this.end = Math.max(this.end, part.end);
    while ((this.end - this.begin) * this.scale > OVERVIEW_WIDTH) this.#move(this.scale / 2, this.begin);
    // With room on both sides, as either may grow.
    if (this.begin < this.origin) this.#move(this.scale, this.begin - (OVERVIEW_WIDTH / this.scale - this.end + this.begin) / 2);
    if ((this.end - this.origin) * this.scale > OVERVIEW_WIDTH) this.#move(this.scale, this.begin);
    const [x, width] = [(part.x - this.origin) * this.scale, part.width * this.scale];
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(part.bitmap, x, 0, width, OVERVIEW_HEIGHT);
  }

  #move(scale, origin) {
    const next = new OffscreenCanvas(OVERVIEW_WIDTH, OVERVIEW_HEIGHT);
    const context = next.getContext("2d");
    const ratio = scale / this.scale;
    context.drawImage(this.canvas, (this.origin - origin) * scale, 0, OVERVIEW_WIDTH * ratio, OVERVIEW_HEIGHT);
    Object.assign(this, { canvas: next, context, scale, origin });
  }

  /** Draws the part of the image from `begin` to `end` into a rectangle. */
  draw(context, begin, end, x, y, width, height) {
    const from = Math.max(begin, this.origin);
    const to = Math.min(end, this.origin + OVERVIEW_WIDTH / this.scale);
    if (to <= from) return;
    const ratio = width / (end - begin);
    const source = [(from - this.origin) * this.scale, 0, (to - from) * this.scale, OVERVIEW_HEIGHT];
    context.drawImage(this.canvas, ...source, x + (from - begin) * ratio, y, (to - from) * ratio, height);
  }
}
