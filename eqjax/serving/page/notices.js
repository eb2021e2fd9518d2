// What the page has to say: a card over the image, and short lines below.

const byId = (id) => document.getElementById(id);
let counting;
let hiding;

/**
 * Shows a card over the image.
 * `buttons` are [text, action] from the most likely one; `seconds` counts down beside `counted`.
 */
export function showNotice({ title, text, buttons = [], seconds = 0, counted = "Next try in" }) {
  clearInterval(counting);
  byId("notice-title").textContent = title;
  byId("notice-text").textContent = text;
  const made = buttons.map(([label, act], i) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: label, className: i ? "" : "primary" });
    button.addEventListener("click", act);
    return button;
  });
  byId("notice-buttons").replaceChildren(...made);
  const count = byId("notice-count");
  count.hidden = !seconds;
  const end = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.max(0, Math.ceil((end - performance.now()) / 1000));
    count.textContent = left ? `${counted} ${left} s` : "Trying …";
  };
  tick();
  if (seconds) counting = setInterval(tick, 250);
  byId("notice").hidden = false;
}

export function hideNotice() {
  clearInterval(counting);
  byId("notice").hidden = true;
}

/** Shows a short line for some seconds. */
export function toast(text) {
  const line = byId("toast");
  line.textContent = text;
  line.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (line.hidden = true), 5000);
}

/** Tells listeners of screen readers. */
export function say(text) {
  byId("said").textContent = text;
}
