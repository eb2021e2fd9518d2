// Light or dark: as the system has it, until the visitor chooses; the choice is kept where the browser allows it.

const NAME = "eqjax-theme";

const root = document.documentElement;

// At once: the page itself waits for the facts of the model.
try {
  root.dataset.theme = localStorage.getItem(NAME) ?? "";
} catch {
  // In a frame of another site there may be no storage.
}

export function setUpTheme(button, onChange) {
  const system = matchMedia("(prefers-color-scheme: light)");
  button.addEventListener("click", () => {
    const isLight = root.dataset.theme ? root.dataset.theme === "light" : system.matches;
    root.dataset.theme = isLight ? "dark" : "light";
    try {
      localStorage.setItem(NAME, root.dataset.theme);
    } catch {
      // The choice holds until the page is left.
    }
    onChange();
  });
  system.addEventListener("change", onChange);
}
