// Classes, sliders and seed: what the visitor wants of the next strips.

const byId = (id) => document.getElementById(id);
// Strips over which the image turns into a class that was chosen.
const GLIDE = 2;
// More classes than this are found by typing.
const MAX_VISIBLE = 24;

export class Controls {
  /** Controls for a model; `onSteer(isNew)` is called when the visitor steers, `onSeed(seed)` for another image. */
  constructor(model, { onSteer, onSeed, onPace }) {
    Object.assign(this, { model, onSteer, onSeed });
    this.steering = {
      first_class: model.start_class ?? 0,
      second_class: model.start_class ?? 0,
      mix: 0,
      guidance_scale: model.guidance_scale.default,
      temperature: model.temperature.default,
    };
    this.isGliding = false;
    this.#makeClasses();
    this.#makeSlider("guidance", model.guidance_scale, "guidance_scale", 1);
    this.#makeSlider("temperature", model.temperature, "temperature", 2);
    byId("mix").addEventListener("input", (event) => this.setMix(Number(event.target.value)));
    const pace = byId("pace");
    const setPace = () => {
      byId("pace-value").textContent = pace.value;
      pace.setAttribute("aria-valuetext", `${pace.value} columns a second`);
      fill(pace);
      onPace(Number(pace.value));
    };
    pace.addEventListener("input", setPace);
    setPace();
    byId("dice").addEventListener("click", () => onSeed(randomSeed()));
    byId("seed-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submitSeed();
    });
    byId("seed").addEventListener("change", () => this.#submitSeed());
    this.refresh();
  }

  #submitSeed() {
    const input = byId("seed");
    const seed = Number(input.value);
    const isSeed = /^\d+$/.test(input.value) && seed < 2 ** 31;
    input.setAttribute("aria-invalid", String(!isSeed));
    if (isSeed && seed !== this.seed) this.onSeed(seed);
    else if (!isSeed) input.title = "A whole number from 0 to 2 147 483 647";
  }

  showSeed(seed) {
    this.seed = seed;
    byId("seed").value = seed;
    byId("seed").removeAttribute("aria-invalid");
  }

  #makeSlider(id, { least, most, default: value }, field, digits) {
    const slider = byId(id);
    Object.assign(slider, { min: least, max: most, value });
    slider.addEventListener("input", () => {
      this.steering[field] = Number(slider.value);
      byId(`${id}-value`).textContent = this.steering[field].toFixed(digits);
      fill(slider);
      this.onSteer();
    });
  }

  #makeClasses() {
    const box = byId("classes");
    this.buttons = this.model.classes.map((name, label) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "class";
      if (this.model.has_thumbnails) {
        const image = new Image();
        Object.assign(image, { src: `api/classes/${label}`, alt: "", loading: "lazy", draggable: false });
        button.append(image);
      }
      const text = document.createElement("span");
      text.textContent = name;
      button.append(text);
      button.title = label < 9 ? `${name} (${label + 1})` : name;
      button.addEventListener("click", () => this.choose(label));
      return button;
    });
    box.append(...this.buttons);
    box.classList.toggle("only-names", !this.model.has_thumbnails);
    if (this.buttons.length <= MAX_VISIBLE) return;
    const filter = byId("filter");
    filter.hidden = false;
    filter.addEventListener("input", () => {
      const text = filter.value.trim().toLowerCase();
      this.buttons.forEach((button, label) => (button.hidden = !this.model.classes[label].toLowerCase().includes(text)));
    });
  }

  /** The class that there is more of. */
  get mainClass() {
    return this.steering.mix < 0.5 ? this.steering.first_class : this.steering.second_class;
  }

  /** Lets the image turn into a class over the next strips. */
  choose(label) {
    if (!(label in this.buttons)) return;
    const target = this.steering.mix > 0 || this.isGliding ? this.steering.second_class : this.steering.first_class;
    if (label === target && (this.isGliding || this.steering.mix === 1 || this.steering.mix === 0)) return;
    const from = this.mainClass;
    if (from === label) Object.assign(this.steering, { first_class: label, second_class: label, mix: 0 });
    else Object.assign(this.steering, { first_class: from, second_class: label, mix: 0 });
    this.isGliding = from !== label;
    if (this.isGliding) this.advance();
    this.refresh();
    this.onSteer();
  }

  /** Blends by hand. */
  setMix(mix) {
    if (this.steering.first_class === this.steering.second_class) return this.refresh();
    this.isGliding = false;
    this.steering.mix = Math.min(1, Math.max(0, Math.round(mix * 20) / 20));
    this.refresh();
    this.onSteer();
  }

  /** Goes on with a glide; to be called when a strip was asked for. */
  advance() {
    if (!this.isGliding) return;
    this.steering.mix = Math.min(1, Math.round(100 * (this.steering.mix + 1 / GLIDE)) / 100);
    if (this.steering.mix > 0.98) Object.assign(this, { isGliding: false }).steering.mix = 1;
    this.refresh();
  }

  /** Shows another steering, as of a link. */
  show(steering) {
    this.isGliding = false;
    this.steering = { ...steering };
    this.refresh();
  }

  /** Words for a steering. */
  describe({ first_class: first, second_class: second, mix }) {
    const names = this.model.classes;
    if (first === second || mix === 0) return names[first];
    return mix === 1 ? names[second] : `${names[first]} → ${names[second]} ${Math.round(100 * mix)} %`;
  }

  /** Scrolls the classes, where not all have room, to the one that is chosen. */
  #reveal(button) {
    const box = byId("classes");
    const [begin, end] = [button.offsetLeft, button.offsetLeft + button.offsetWidth];
    if (begin < box.scrollLeft || end > box.scrollLeft + box.clientWidth) {
      box.scrollTo({ left: begin - (box.clientWidth - button.offsetWidth) / 2, behavior: "smooth" });
    }
  }

  refresh() {
    const { first_class: first, second_class: second, mix, guidance_scale: guidance, temperature } = this.steering;
    const isBlend = first !== second;
    byId("mix").value = mix;
    byId("mix").disabled = !isBlend;
    byId("mix").setAttribute("aria-valuetext", this.describe(this.steering));
    byId("first").textContent = this.model.classes[first];
    byId("second").textContent = isBlend ? this.model.classes[second] : "choose a class";
    byId("second").classList.toggle("empty", !isBlend);
    byId("guidance").value = guidance;
    byId("guidance-value").textContent = guidance.toFixed(1);
    byId("temperature").value = temperature;
    byId("temperature-value").textContent = temperature.toFixed(2);
    for (const id of ["mix", "guidance", "temperature"]) fill(byId(id));
    const chosen = isBlend && (this.isGliding || mix > 0.5) ? second : first;
    this.buttons.forEach((button, label) => {
      const share = (label === first ? 1 - mix : 0) + (label === second ? mix : 0);
      button.style.setProperty("--share", share.toFixed(2));
      button.classList.toggle("is-on", share > 0);
      button.setAttribute("aria-pressed", String(label === chosen));
    });
    if (chosen !== this.revealed) this.#reveal(this.buttons[chosen]);
    this.revealed = chosen;
  }
}

function fill(slider) {
  const { min, max, value } = slider;
  slider.style.setProperty("--filled", `${(100 * (value - min)) / (max - min)}%`);
}

/** A seed of 31 bits; small ones are easier to read and to type. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 100000;
}
