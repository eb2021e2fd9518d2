// Writes PNG files row by row: a canvas ends at some 16 000 pixels, an image here may be longer.

const SIGNATURE = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc(parts) {
  let sum = 0xffffffff;
  for (const bytes of parts) for (const byte of bytes) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

function number(value) {
  return new Uint8Array([value >>> 24, value >>> 16, value >>> 8, value]);
}

function chunk(name, data) {
  const kind = new TextEncoder().encode(name);
  return [number(data.length), kind, data, number(crc([kind, data]))];
}

/** The rows of an image that is still to be filled: every row begins with its filter, 1: differences to the left. */
export class Rows {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.bytes = new Uint8Array(height * (1 + 3 * width));
    for (let y = 0; y < height; y++) this.bytes[y * (1 + 3 * width)] = 1;
  }

  /** Puts pixels, as a canvas gives them, beginning at column x. */
  put(x, { data, width, height }) {
    for (let y = 0; y < height; y++) {
      let to = y * (1 + 3 * this.width) + 1 + 3 * x;
      for (let from = 4 * y * width; from < 4 * (y + 1) * width; from += 4) {
        this.bytes[to++] = data[from];
        this.bytes[to++] = data[from + 1];
        this.bytes[to++] = data[from + 2];
      }
    }
  }

  #filter() {
    const length = 1 + 3 * this.width;
    for (let y = 0; y < this.height; y++) {
      for (let i = (y + 1) * length - 1; i > y * length + 3; i--) this.bytes[i] -= this.bytes[i - 3];
    }
  }

  /** The file; its pixels are used up. `comment` is stored beside them, in Latin letters. */
  async toBlob(comment) {
    this.#filter();
    const packed = new Blob([this.bytes]).stream().pipeThrough(new CompressionStream("deflate"));
    const data = new Uint8Array(await new Response(packed).arrayBuffer());
    const head = new Uint8Array([...number(this.width), ...number(this.height), 8, 2, 0, 0, 0]);
    const text = new TextEncoder().encode(`Comment\0${comment}`);
    const chunks = [["IHDR", head], ["tEXt", text], ["IDAT", data], ["IEND", new Uint8Array()]];
    return new Blob([SIGNATURE, ...chunks.flatMap(([name, bytes]) => chunk(name, bytes))], { type: "image/png" });
  }
}
