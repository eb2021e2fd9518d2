// Takes pixels out of the image: all of it as a file, its end as a photograph.

import { Rows } from "./png.js";

// Pixels of a file: three bytes each have to fit into memory.
const MAX_PIXELS = 64e6;
// Columns of the end of an image from which it is continued.
const TAIL_COLUMNS = 12;

async function render(tape, begin, end, comment) {
  const rows = new Rows(end - begin, tape.height);
  await tape.forEachPart(begin, end, (x, pixels) => rows.put(x - begin, pixels));
  return rows.toBlob(comment);
}

/** Saves the image as far as it can be seen and is kept, at the model's resolution. */
export async function saveImage(tape, view, seed, address) {
  const [first, last] = tape.wholeRange(view.x + view.width / 2);
  let begin = Math.max(first, Math.ceil(view.head.left));
  const end = Math.min(last, Math.floor(view.head.right));
  const isWhole = begin <= Math.ceil(view.head.left) && end >= Math.floor(view.head.right) && (end - begin) * tape.height <= MAX_PIXELS;
  begin = Math.max(begin, end - Math.floor(MAX_PIXELS / tape.height));
  if (end <= begin) return { begin, end: begin, isWhole };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await render(tape, begin, end, `eqjax ${address}`));
  link.download = `eqjax-${seed}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  return { begin, end, isWhole };
}

/** The last columns of the image as a PNG file; null if there are too few. */
export async function tailOf(tape, { column_width: width }) {
  const end = tape.right;
  const [first] = tape.wholeRange(end - 1);
  const count = Math.min(TAIL_COLUMNS, Math.floor((end - first) / width));
  if (count < 3) return null;
  return render(tape, end - count * width, end, "eqjax");
}
