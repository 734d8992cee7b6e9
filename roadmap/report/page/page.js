// Common to the parts of the page: the tooltip, the announcements, and the state in the address after its '#'.
"use strict";

const quiet = matchMedia("(prefers-reduced-motion: reduce)");
const live = document.getElementById("live");
const bubble = document.getElementById("tip");

/** An element with properties and children; strings become text, never markup. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function announce(text) {
  live.textContent = text;
}

/** Shows a title and pairs of name and value beside a rectangle of the window. */
function showTip(title, pairs, box) {
  const rows = pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  bubble.replaceChildren(make("strong", {}, title), make("dl", {}, ...rows));
  bubble.hidden = false;
  const { width, height } = bubble.getBoundingClientRect();
  const right = box.right + 12 + width < innerWidth ? box.right + 12 : box.left - 12 - width;
  const left = Math.min(Math.max(8, right), innerWidth - width - 8);
  const top = Math.min(Math.max(8, box.top - height / 2), innerHeight - height - 8);
  const below = box.top + 28 + height < innerHeight ? box.top + 28 : box.top - height - 16; // in a narrow window, off the finger
  Object.assign(bubble.style, { left: `${left}px`, top: `${Math.max(8, innerWidth < 600 ? below : top)}px` });
}

function hideTip() {
  bubble.hidden = true;
}

const address = {
  state: new URLSearchParams(),
  /** Reads the state from the address; false where the address names a place on the page. */
  read() {
    const isState = location.hash.includes("=");
    if (isState) this.state = new URLSearchParams(location.hash.slice(1));
    return isState;
  },
  get(name) {
    return this.state.get(name);
  },
  set(values) {
    for (const [name, value] of Object.entries(values)) value === null ? this.state.delete(name) : this.state.set(name, value);
    try {
      history.replaceState(null, "", `#${this.state}`);
    } catch {
      // a page in a sandbox has no history, so the state is lost
    }
  },
};

/** The button that switches dark colors on and off; without a choice the system's preference applies. */
function theme() {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = address.get("theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
    button.setAttribute("aria-pressed", String(chosen ? chosen === "dark" : dark.matches));
  };
  button.addEventListener("click", () => {
    address.set({ theme: button.getAttribute("aria-pressed") === "true" ? "light" : "dark" });
    show();
  });
  dark.addEventListener("change", show);
  addEventListener("hashchange", show);
  show();
}

/** Opens folded parts for printing. */
function print() {
  const paper = matchMedia("print");
  const folded = document.querySelectorAll("[data-open-in-print]");
  const show = () => {
    for (const element of folded) {
      if (paper.matches && !element.open) element.dataset.wasClosed = "";
      else if (paper.matches || !("wasClosed" in element.dataset)) continue;
      element.open = paper.matches;
      if (!paper.matches) delete element.dataset.wasClosed;
    }
  };
  paper.addEventListener("change", show);
}
