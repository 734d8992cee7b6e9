/** The table of steps: sorting by its heads, filtering, and the choice of columns. */
class StepTable {
  constructor(root, choose) {
    this.root = root;
    this.container = root.querySelector("[data-rows]");
    this.body = this.container.querySelector("tbody");
    this.rows = [...this.body.rows];
    this.heads = [...this.container.querySelectorAll("thead th")];
    this.words = new Intl.Collator("en", { numeric: true });
    for (const head of this.heads) head.querySelector("button").addEventListener("click", () => this.sort(head));
    for (const name of ["filter", "state"]) root.querySelector(`[data-${name}]`).addEventListener("input", () => this.filter());
    for (const box of root.querySelectorAll("[data-column]")) {
      box.addEventListener("change", () => this.show(box.dataset.column, box.checked));
      this.show(box.dataset.column, box.checked); // a reload may have kept the choice
    }
    const columns = root.querySelector(".columns");
    columns.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      columns.open = false;
      columns.querySelector("summary").focus();
    });
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (!event.target.closest("a") && String(getSelection()) === "") choose(Number(row.dataset.id));
    });
    this.filter();
  }

  /** Ascending, then descending, then in the order of the roadmap. Equal rows keep their order; missing values come last. */
  sort(head) {
    const order = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
    for (const other of this.heads) other.setAttribute("aria-sort", other === head ? order : "none");
    const column = this.heads.indexOf(head);
    const sign = order === "descending" ? -1 : 1;
    const number = "number" in head.dataset;
    const value = (row) => row.cells[column].dataset.value;
    const compare = (one, other) => {
      if (order === "none") return one.dataset.id - other.dataset.id;
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (number && !isNaN(a) && !isNaN(b) ? a - b : this.words.compare(a, b));
    };
    this.body.append(...[...this.body.rows].sort(compare));
    announce(order === "none" ? "in the order of the roadmap" : `sorted by ${head.textContent.trim()}, ${order}`);
  }

  filter() {
    const wanted = this.root.querySelector("[data-filter]").value.toLowerCase().split(/\s+/);
    const state = this.root.querySelector("[data-state]").value;
    for (const row of this.rows) {
      const text = row.dataset.text.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word)) || (state !== "" && !row.dataset.states.split(" ").includes(state));
    }
    const left = this.rows.filter((row) => !row.hidden).length;
    const all = this.rows.length;
    this.root.querySelector("[data-count]").textContent = left === all ? `${all} steps` : `${left} of ${all} steps`;
  }

  show(key, wanted) {
    const column = this.heads.findIndex((head) => head.dataset.key === key);
    for (const row of [this.heads[0].parentElement, ...this.rows]) row.cells[column].hidden = !wanted;
  }

  /** Marks the chosen row and those on the way to it, and scrolls to it inside the table; the page itself stays where it is. */
  mark(chosen, way) {
    for (const row of this.rows) {
      const id = Number(row.dataset.id);
      row.classList.toggle("way", way.includes(id));
      row.classList.toggle("chosen", id === chosen);
      id === chosen ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current");
    }
    const row = this.rows.find((row) => Number(row.dataset.id) === chosen);
    if (!row || row.hidden) return;
    const [frame, place, head] = [this.container, row, this.heads[0]].map((element) => element.getBoundingClientRect());
    if (place.top >= frame.top + head.height && place.bottom <= frame.bottom) return;
    const top = this.container.scrollTop + place.top - frame.top - frame.height / 2;
    this.container.scrollTo({ top, behavior: quiet.matches ? "auto" : "smooth" });
  }
}
