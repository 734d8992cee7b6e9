const COLORS = ["accent", "green", "purple", "sky", "brown", "orange"].map((name) => `var(--${name})`);

/** Measures by epoch: all steps in gray, those that are picked or chosen in color with the band of their seeds. */
class Curves {
  constructor(root, spec, data, choose) {
    Object.assign(this, { data, choose, chosen: null, parent: null });
    const drawn = data.curves.map((curve) => data.points[curve.id]);
    const path = drawn.filter((point) => !point.side);
    this.picked = new Set((drawn.length <= 5 ? drawn : [path[0] ?? drawn[0], path.at(-1) ?? drawn.at(-1)]).map((point) => point.id));
    this.chips = drawn.map((point) => this.chip(point));
    root.querySelector("[data-chips]").append(...this.chips);
    this.charts = [...root.querySelectorAll("[data-measure]")].map((select) => {
      const chart = { select, box: root.querySelector(`[data-curve=${select.dataset.measure}]`), spec };
      select.addEventListener("input", () => this.draw());
      return chart;
    });
  }

  chip(point) {
    const chip = make("button", { type: "button", className: "chip", title: point.title }, make("i"), point.step);
    chip.dataset.id = point.id;
    chip.addEventListener("click", () => {
      this.picked.has(point.id) ? this.picked.delete(point.id) : this.picked.add(point.id);
      this.draw();
    });
    return chip;
  }

  mark(chosen) {
    this.chosen = chosen;
    this.parent = chosen === null ? null : this.data.points[chosen].parent;
    return this.draw();
  }

  colors() {
    const ids = [...new Set([...this.picked, this.parent])].filter((id) => id !== null && id !== this.chosen);
    const found = new Map(ids.map((id, place) => [id, COLORS[place % COLORS.length]]));
    return this.chosen === null ? found : found.set(this.chosen, "var(--pick)");
  }

  async draw() {
    const colors = this.colors();
    for (const chip of this.chips) {
      const id = Number(chip.dataset.id);
      chip.setAttribute("aria-pressed", String(this.picked.has(id)));
      chip.classList.toggle("chosen", id === this.chosen);
      chip.style.setProperty("--swatch", colors.get(id) ?? "transparent");
    }
    await Promise.all(this.charts.map((chart) => this.fill(chart, this.lines(chart.select.value, colors))));
  }

  lines(measure, colors) {
    const rank = (curve) => (curve.id === this.chosen ? 2 : colors.has(curve.id) ? 1 : 0);
    const curves = this.data.curves.filter((curve) => measure in curve).sort((one, other) => rank(one) - rank(other));
    return curves.flatMap((curve, order) => {
      const series = { color: colors.get(curve.id) ?? "var(--faint)", width: [1, 2, 3][rank(curve)] };
      const { step } = this.data.points[curve.id];
      return curve.epoch.flatMap((epoch, place) => {
        if (curve[measure][place] === null) return [];
        const [mean, low, high] = curve[measure][place];
        return [{ id: curve.id, order, step, seeds: curve.seeds, epoch, mean, low, high, ...series }];
      });
    });
  }

  async fill(chart, lines) {
    if (chart.view) return chart.view.data("lines", lines).runAsync();
    const spec = structuredClone(chart.spec);
    spec.datasets.lines = lines;
    const { view } = await embed(chart.box, spec, (event, at) => this.tip(event, at));
    view.addEventListener("click", (_, item) => item?.datum?.id !== undefined && this.choose(item.datum.id));
    chart.view = view;
    return view;
  }

  tip(event, at) {
    const pairs = [["epoch", String(at.epoch)], ["mean", String(at.mean)], ["seeds", `${at.seeds}, ${at.low} to ${at.high}`]];
    showTip(at.step, pairs, { left: event.clientX, right: event.clientX, top: event.clientY });
  }
}
