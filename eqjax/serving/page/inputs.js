// Keys, and photographs that are dropped, pasted or chosen.

const byId = (id) => document.getElementById(id);

/** Calls `take(file)` with an image that is dropped on the page, pasted, or chosen in `input`. */
export function listenForPhotos(input, veil, take) {
  let depth = 0;
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!isFile(event)) return;
    depth += 1;
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (isFile(event) && (depth -= 1) <= 0) veil.hidden = true;
  });
  addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    depth = 0;
    veil.hidden = true;
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file) take(file);
  });
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = "";
  });
}

/** Listens for the keys that `#help` lists. */
export function listenForKeys(page, controls) {
  const keys = {
    " ": () => page.pause(!page.view.isPaused),
    "[": () => controls.setMix(controls.steering.mix - 0.1),
    "]": () => controls.setMix(controls.steering.mix + 0.1),
    r: () => byId("dice").click(),
    p: () => byId("file").click(),
    l: () => page.share(),
    s: () => page.save(),
    t: () => byId("theme").click(),
    "?": () => byId("help").showModal(),
    ArrowLeft: () => page.view.scroll(-0.18),
    ArrowRight: () => page.view.scroll(0.18),
    Home: () => page.view.goToBeginning(),
    End: () => page.view.goToEdge("right"),
  };
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const { target, key } = event;
    const isText = target.matches?.("input:not([type=range]), textarea, select");
    const isSlider = target.matches?.("input[type=range]");
    const usesKey = isText || (isSlider && /^(Arrow|Home|End|Page)/.test(key)) || (target.matches?.("button") && key === " ");
    if (usesKey) return;
    const act = /^[1-9]$/.test(key) ? () => controls.choose(Number(key) - 1) : keys[key.length === 1 ? key.toLowerCase() : key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
