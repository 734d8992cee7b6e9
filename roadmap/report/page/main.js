/** One ablation on the page; a choice in one of its parts applies to all. */
class View {
  constructor(root, data, specs, chooseStep) {
    Object.assign(this, { root, data, chosen: null });
    const choose = (id) => chooseStep(this, id);
    this.table = new StepTable(root, choose);
    this.articles = [...root.querySelectorAll("article.step")];
    const axis = root.querySelector("[data-axis]");
    if (axis) {
      this.chart = new AccuracyChart(root.querySelector("[data-chart=accuracy]"), specs.accuracy, data, choose);
      axis.addEventListener("input", () => this.chart.draw(axis.value));
    }
    if (data.curves.length) this.curves = new Curves(root, specs.curve, data, choose);
    root.querySelector("[data-clear]").addEventListener("click", () => choose(null));
    root.addEventListener("click", (event) => {
      const link = event.target.closest("[data-goto]");
      if (!link) return;
      event.preventDefault(); // the address keeps the choice, not a place on the page
      choose(Number(link.dataset.goto));
      this.articles[this.chosen].focus();
    });
    this.show(null);
  }

  /** All parts are drawn when this is done. */
  async drawn() {
    await this.chart?.draw(this.root.querySelector("[data-axis]").value);
    await this.curves?.draw();
  }

  show(id) {
    this.chosen = id;
    const way = id === null ? [] : this.data.points[id].way;
    for (const article of this.articles) article.hidden = Number(article.dataset.id) !== id;
    this.root.querySelector("[data-overview]").hidden = id !== null;
    this.root.querySelector("[data-clear]").hidden = id === null;
    this.root.querySelector("[data-panel]").scrollTop = 0;
    this.table.mark(id, way);
    this.chart?.mark(id, way);
    this.curves?.mark(id);
  }

  /** The choice as text for a screen reader. */
  description() {
    if (this.chosen === null) return "nothing is chosen";
    const { step, tip, way } = this.data.points[this.chosen];
    const names = way.map((id) => this.data.points[id].step);
    return `${step} is chosen, reached by ${names.join(", ")}; ${tip.map((pair) => pair.join(" ")).join("; ")}`;
  }
}

async function start() {
  const { charts, views: data } = JSON.parse(document.getElementById("data").textContent);
  const roots = [...document.querySelectorAll("[data-view]")];
  const views = roots.map((root, place) => new View(root, data[place], charts, chooseStep));

  /** A step that several ablations have is chosen in all of them. */
  function chooseStep(view, id) {
    const step = id === null ? null : view.data.points[id].step;
    chooseAll(step);
    announce(view.description());
    address.set({ step });
  }

  function chooseAll(step) {
    for (const view of views) view.show(view.data.points.find((point) => point.step === step)?.id ?? null);
  }

  addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  addEventListener("scroll", hideTip, { passive: true });
  address.read();
  addEventListener("hashchange", () => address.read() && chooseAll(address.get("step")));
  document.documentElement.classList.add("js");
  theme();
  print();
  await Promise.all(views.map((view) => view.drawn()));
  chooseAll(address.get("step"));
  document.documentElement.dataset.ready = "";
}

start();
