const OPTIONS = { mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, hover: false };

/** Draws a chart in a box; `tip` is called with an event and the datum under the pointer, if it has a tooltip. */
function embed(box, spec, tip) {
  const tooltip = (_, event, item, value) => (value ? tip(event, item.datum) : hideTip());
  return vegaEmbed(box, spec, { ...OPTIONS, tooltip });
}

/** Places for the names of points in pixels, so that none covers another or a point; a name without room is hidden.
 *  `lines` are dots along lines, which names cross only where necessary. */
function placeLabels(points, at, frame, lines) {
  const taken = points.map((point) => ({ left: at(point).x - 8, right: at(point).x + 8, top: at(point).y - 8, bottom: at(point).y + 8 }));
  return points.map((point) => {
    const { x, y } = at(point);
    const width = 6.3 * point.step.length;
    const places = [[11, 0], [-11, 0], [0, -17], [0, 17], [10, -14], [-10, -14], [10, 14], [-10, 14]].map(([dx, dy]) => {
      const left = x + dx - width * (dx > 0 ? 0 : dx < 0 ? 1 : 0.5);
      const align = dx > 0 ? "left" : dx < 0 ? "right" : "center";
      return { dx, dy, align, left, right: left + width, top: y + dy - 7, bottom: y + dy + 7 };
    });
    const inside = (box) => box.left >= 0 && box.right <= frame.width && box.top >= 0 && box.bottom <= frame.height;
    const covers = (box, other) => box.left <= other.right && box.right >= other.left && box.top <= other.bottom && box.bottom >= other.top;
    const apart = (box) => !taken.some((other) => covers(box, other));
    const crossed = (box) => lines.filter((dot) => dot.x > box.left && dot.x < box.right && dot.y > box.top && dot.y < box.bottom).length;
    const free = places.filter((box) => inside(box) && apart(box)).map((box) => ({ ...box, crossed: crossed(box) }));
    const found = free.sort((one, other) => one.crossed - other.crossed)[0];
    if (found) taken.push(found);
    const { dx, dy, align } = found ?? places.find(inside) ?? places[0];
    return { ...point, text: point.step, show: Boolean(found), dx, dy, align };
  });
}

/** Accuracy against one of the costs, with a focusable point per step. */
class AccuracyChart {
  constructor(box, spec, data, choose) {
    Object.assign(this, { box, spec, data, choose, chosen: null, way: [], ready: Promise.resolve() });
    this.order = data.points.filter((point) => point.top1 !== null).map((point) => point.id);
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("focusin", (event) => this.point(event.target));
    box.addEventListener("focusout", hideTip);
    let waiting = 0;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.label(), 120);
    });
  }

  /** Draws everything again, over another cost; one drawing at a time. */
  draw(key) {
    this.ready = this.ready.then(() => this.redraw(key));
    return this.ready;
  }

  async redraw(key) {
    const axis = this.data.axes.find((axis) => axis.key === key);
    const x = (point) => point.cost[key];
    this.points = this.data.points.filter((point) => point.top1 !== null && x(point) !== null).map((point) => ({ ...point, x: x(point) }));
    const values = this.points.map((point) => point.x);
    const log = Math.min(...values) > 0 && Math.max(...values) > 8 * Math.min(...values);
    const spec = structuredClone(this.spec);
    for (const { encoding } of spec.layer) {
      if (!encoding.x?.field) continue;
      encoding.x.title = axis.title + (log ? ", logarithmic" : "");
      if (log) encoding.x.scale = { type: "log", padding: 24, nice: false };
    }
    this.lines = this.edges(log);
    const labels = this.points.map((point) => ({ ...point, text: point.step, show: false, dx: 11, dy: 0, align: "left" }));
    spec.datasets = { points: this.points.map((point) => ({ ...point, name: this.name(point) })), edges: this.lines, labels };
    spec.datasets.reference = this.data.reference ? [this.data.reference] : [];
    spec.layer = spec.layer.filter((layer) => spec.datasets[layer.data.name].length > 0);
    this.embedded?.finalize();
    this.embedded = await embed(this.box, spec, (event, point) => this.tip(event, point));
    this.embedded.view.addEventListener("click", (_, item) => item?.datum?.id !== undefined && this.choose(item.datum.id));
    await this.label();
  }

  edges(log) {
    const known = new Map(this.points.map((point) => [point.id, point]));
    const middle = (one, other) => (log ? Math.sqrt(one * other) : (one + other) / 2);
    return this.points.flatMap((child) => {
      const parent = known.get(child.parent);
      if (!parent) return [];
      const ends = { x: parent.x, top1: parent.top1, x2: child.x, top1_2: child.top1 };
      return [{ id: child.id, ...ends, xm: middle(parent.x, child.x), ym: (parent.top1 + child.top1) / 2 }];
    });
  }

  name(point) {
    return `${point.step}, ${point.title}: ${point.tip.map((pair) => pair.join(" ")).join("; ")}`;
  }

  async label() {
    const { view } = this.embedded ?? {};
    if (!view) return;
    const [x, y] = [view.scale("x"), view.scale("y")];
    const onPathFirst = [...this.points].sort((one, other) => one.side - other.side);
    const frame = { width: view.width(), height: view.height() };
    const at = (point) => ({ x: x(point.x), y: y(point.top1) });
    view.data("labels", placeLabels(onPathFirst, at, frame, this.lineDots(x, y)));
    await this.mark(this.chosen, this.way);
  }

  /** Points every few pixels along the edges and the error bars. */
  lineDots(x, y) {
    const bars = this.points.map((point) => ({ x: point.x, top1: point.low, x2: point.x, top1_2: point.high }));
    return [...this.lines, ...bars].flatMap((line) => {
      const [x1, y1, x2, y2] = [x(line.x), y(line.top1), x(line.x2), y(line.top1_2)];
      const parts = Math.ceil(Math.hypot(x2 - x1, y2 - y1) / 4) || 1;
      return Array.from({ length: parts }, (_, at) => ({ x: x1 + ((x2 - x1) * at) / parts, y: y1 + ((y2 - y1) * at) / parts }));
    });
  }

  async mark(chosen, way) {
    Object.assign(this, { chosen, way });
    if (!this.embedded) return;
    await this.embedded.view.signal("chosen", chosen ?? -1).signal("way", way).runAsync();
    const marks = this.marks();
    const reached = marks.find((mark) => mark.__data__.datum.id === (chosen ?? this.order[0])) ?? marks[0];
    for (const mark of marks) {
      mark.setAttribute("role", "button");
      mark.setAttribute("aria-pressed", String(mark.__data__.datum.id === chosen));
      mark.setAttribute("tabindex", mark === reached ? "0" : "-1");
    }
  }

  /** The elements of the points, in the order of the table. */
  marks() {
    return [...this.box.querySelectorAll("path[aria-roledescription=point]")];
  }

  tip(event, point) {
    this.show(point, { left: event.clientX, right: event.clientX, top: event.clientY });
  }

  point(mark) {
    const point = mark.__data__?.datum;
    if (point?.name && mark.matches(":focus-visible")) this.show(point, mark.getBoundingClientRect());
  }

  show(point, box) {
    showTip(point.step === point.title ? point.step : `${point.step}: ${point.title}`, point.tip, box);
  }

  key(event) {
    const marks = this.marks();
    const place = marks.indexOf(event.target);
    if (place < 0) return;
    const { id, parent } = event.target.__data__.datum;
    const relative = (test) => marks.find((mark) => test(mark.__data__.datum)) ?? event.target;
    const reach = {
      ArrowRight: () => marks[(place + 1) % marks.length],
      ArrowLeft: () => marks.at(place - 1),
      ArrowUp: () => relative((point) => point.id === parent),
      ArrowDown: () => relative((point) => point.parent === id),
      Home: () => marks[0],
      End: () => marks.at(-1),
    };
    if (event.key in reach) {
      const next = reach[event.key]();
      event.target.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") this.choose(id);
    else return;
    event.preventDefault();
  }
}
