// The address of an image: its seed, and the steerings of its strips, where they change.
//
//   #seed=42&model=0123456789ab&right=0:7,7,0,2,1;5:7,2,0.5,2,1
//
// `right` and `left` list `strip:first class,second class,mix,guidance,temperature`. A photograph is not in a link;
// `photo=1` says that the image began with one.

export const SIDES = ["right", "left"];
const FIELDS = ["first_class", "second_class", "mix", "guidance_scale", "temperature"];
// Longer addresses are cut off by some programs.
const MAX_STEPS = 300;

/** Whether two steerings are the same. */
export function same(a, b) {
  return FIELDS.every((name) => a[name] === b[name]);
}

/** The steering of a strip: that of the last step at or before it; null before the first step. */
export function steeringAt(steps, index) {
  let found = null;
  for (const step of steps) {
    if (step.index > index) break;
    found = step.steering;
  }
  return found;
}

/** Adds the steering of a strip, if it differs from that of the strip before. */
export function record(steps, index, steering) {
  const before = steeringAt(steps, index);
  if (!before || !same(before, steering)) steps.push({ index, steering: { ...steering } });
}

/** Whether a link can hold these steps. */
export function fits(sides) {
  return SIDES.every((side) => (sides[side] ?? []).length <= MAX_STEPS);
}

/** The part of the address behind #. */
export function encode({ seed, model, photo, sides }) {
  const parts = [`seed=${seed}`, `model=${model}`];
  if (photo) parts.push("photo=1");
  for (const side of SIDES) {
    const steps = (sides[side] ?? []).slice(0, MAX_STEPS);
    if (steps.length) parts.push(`${side}=${steps.map(encodeStep).join(";")}`);
  }
  return parts.join("&");
}

/** What an address holds: {seed, model, photo, sides}; null if there is nothing, Error if it is damaged. */
export function decode(hash, numClasses) {
  const text = hash.replace(/^#/, "");
  if (!text) return null;
  const values = new URLSearchParams(text);
  const seed = values.get("seed") ?? "";
  if (!/^\d{1,10}$/.test(seed) || Number(seed) >= 2 ** 31) throw new Error("the seed is missing or too large");
  const sides = {};
  for (const side of SIDES) sides[side] = decodeSteps(values.get(side) ?? "", numClasses);
  return { seed: Number(seed), model: values.get("model") ?? "", photo: values.get("photo") === "1", sides };
}

function encodeStep({ index, steering }) {
  return `${index}:${FIELDS.map((name) => Number(steering[name].toFixed(3))).join(",")}`;
}

function decodeSteps(text, numClasses) {
  if (!text) return [];
  const steps = text.split(";").map((part) => {
    const found = /^(\d{1,7}):(\d+),(\d+),([\d.]+),([\d.]+),([\d.]+)$/.exec(part);
    if (!found) throw new Error("a steering cannot be read");
    const [index, ...numbers] = found.slice(1).map(Number);
    const steering = Object.fromEntries(FIELDS.map((name, i) => [name, numbers[i]]));
    if (Math.max(steering.first_class, steering.second_class) >= numClasses) throw new Error("it names an unknown class");
    if (!(steering.mix <= 1) || !(steering.guidance_scale <= 20) || !(steering.temperature <= 2)) {
      throw new Error("a steering is out of range");
    }
    return { index, steering };
  });
  if (steps.length > MAX_STEPS || steps[0].index !== 0) throw new Error("its steerings do not begin with strip 0");
  if (steps.some((step, i) => i && step.index <= steps[i - 1].index)) throw new Error("its steerings are out of order");
  return steps;
}
