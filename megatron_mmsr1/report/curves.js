// Draws plots as SVG from numbers. All text goes through textContent.
"use strict";
const Curves = (() => {
  const HEIGHT = 220, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 24, SMOOTH = 5, MARK = 2.5;
  const NAMES = { step: "step", tokens: "sampled tokens", hours: "hours" };

  const node = (name, attributes, text) => {
    const n = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [k, v] of Object.entries(attributes)) n.setAttribute(k, v);
    if (text !== undefined) n.textContent = text;
    return n;
  };
  const short = (v) => {
    const a = Math.abs(v);
    if (a >= 1e4) return Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(v);
    return a !== 0 && a < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(4));
  };
  const ticks = (low, high, n) => {
    const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw));
    const by = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
    const out = [];
    for (let i = Math.ceil(low / by); i * by <= high + by * 1e-9; i++) out.push(i * by);
    return out;
  };
  const range = (values, share) => {
    let low = share ? 0 : Infinity, high = share ? 1 : -Infinity;
    for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
    if (low > high) return [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.04;
    return [low - room, high + room];
  };
  const smooth = (ys) => ys.map((_, i) => {
    const near = ys.slice(Math.max(0, i - (SMOOTH >> 1)), i + (SMOOTH >> 1) + 1);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };

  // One plot into its figure. `lines`: the names of the runs; several are told apart by colour, their curves by dashes.
  const draw = (figure, plot, data, axis) => {
    const several = data.lines.length > 1, width = Math.max(240, figure.clientWidth);
    const kinds = [...new Set(plot.curves.map((c) => c.label))];
    const curves = plot.curves.map((c) => ({
      ...c, x: data.axes[c.x][axis],
      name: several ? `${data.lines[c.line]}${kinds.length > 1 ? `: ${c.label}` : ""}` : c.label,
      colour: `var(--c${(several ? c.line : kinds.indexOf(c.label)) % 8})`,
      dash: c.level ? "2 4" : several && kinds.indexOf(c.label) ? `${8 / kinds.indexOf(c.label)} 3` : "none",
    }));
    const [x0, x1] = range(curves.flatMap((c) => c.x), false);
    const [y0, y1] = range(curves.flatMap((c) => [...c.y, ...(c.lo || []), ...(c.hi || [])]), plot.share);
    const px = (x) => LEFT + (x - x0) / (x1 - x0) * (width - LEFT - RIGHT);
    const py = (y) => TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    const path = (xs, ys) => xs.map((x, i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(ys[i]).toFixed(1)}`).join("");

    const svg = node("svg", { class: "plot", viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", tabindex: "0" });
    svg.setAttribute("aria-label", `${plot.title}, along ${NAMES[axis]}: ` + curves.filter((c) => c.y.length).map(
      (c) => `${c.name} from ${short(c.y[0])} to ${short(c.y[c.y.length - 1])}`).join("; "));
    for (const y of ticks(y0, y1, 4)) {
      svg.append(node("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(y), y2: py(y) }));
      svg.append(node("text", { x: LEFT - 5, y: py(y) + 4, "text-anchor": "end" }, short(y)));
    }
    for (const x of ticks(x0, x1, width / 90)) svg.append(node("text", { x: px(x), y: HEIGHT - 7, "text-anchor": "middle" }, short(x)));
    for (const a of data.alarms) {
      const own = curves.find((c) => c.line === a.line && !c.points && !c.level);
      if (!own) continue;
      const steps = data.axes[plot.curves[curves.indexOf(own)].x].step, from = own.x[nearest(steps, a.from)], to = own.x[nearest(steps, a.to)];
      const box = node("rect", { class: "alarm", x: px(from) - 1, width: px(to) - px(from) + 2, y: TOP, height: HEIGHT - TOP - BOTTOM });
      box.append(node("title", {}, `alarm ${a.name}, steps ${a.from} to ${a.to}`));
      svg.append(box);
    }
    for (const c of curves) {
      const line = { fill: "none", stroke: c.colour, "stroke-dasharray": c.dash };
      if (c.points) {
        svg.append(node("path", { ...line, d: path(c.x, c.y), "stroke-width": 1.2 }));
        c.x.forEach((x, i) => {
          if (c.lo) svg.append(node("line", { stroke: c.colour, x1: px(x), x2: px(x), y1: py(c.lo[i]), y2: py(c.hi[i]) }));
          svg.append(node("circle", { fill: c.colour, cx: px(x), cy: py(c.y[i]), r: MARK }));
        });
      } else if (c.level) {
        svg.append(node("path", { ...line, d: path(c.x, c.y), "stroke-width": 1.4 }));
      } else {
        if (c.lo) {
          const back = [...c.x].reverse(), d = `${path(c.x, c.hi)}${path(back, [...c.lo].reverse()).replace("M", "L")}Z`;
          svg.append(node("path", { class: "band", d, fill: c.colour, opacity: 0.18 }));
        } else svg.append(node("path", { ...line, d: path(c.x, c.y), "stroke-width": 0.8, opacity: 0.35 }));
        svg.append(node("path", { ...line, d: path(c.x, smooth(c.y)), "stroke-width": 1.8 }));
      }
    }
    const cursor = node("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    svg.append(cursor);

    const values = document.createElement("p");
    values.className = "values";
    const show = (x) => {
      values.replaceChildren();
      if (x !== null) values.append(`${NAMES[axis]} ${short(x)}`);
      cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
      if (x !== null) { cursor.setAttribute("x1", px(x)); cursor.setAttribute("x2", px(x)); }
      for (const c of curves) {
        const span = document.createElement("span"), i = nearest(c.x, x ?? Infinity), far = x === null ? c.y.length - 1 : i;
        span.style.color = c.colour;
        span.textContent = `${c.name} ${short(c.y[far])}` + (c.lo && x !== null ? ` (${short(c.lo[far])} to ${short(c.hi[far])})` : "");
        values.append(span);
      }
    };
    const stops = [...new Set(curves.flatMap((c) => c.x))].sort((a, b) => a - b);
    let at = -1;
    const go = (i) => { at = Math.max(0, Math.min(stops.length - 1, i)); show(stops[at]); };
    svg.addEventListener("pointermove", (e) => {
      const box = svg.getBoundingClientRect();
      go(nearest(stops, x0 + ((e.clientX - box.left) / box.width * width - LEFT) / (width - LEFT - RIGHT) * (x1 - x0)));
    });
    svg.addEventListener("pointerleave", () => show(null));
    svg.addEventListener("blur", () => show(null));
    svg.addEventListener("keydown", (e) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? stops.length - 1 : at - 1, Home: 0, End: stops.length - 1 }[e.key];
      if (to === undefined || e.altKey || e.ctrlKey || e.metaKey) return;
      e.preventDefault();
      go(to);
    });
    show(null);
    const title = document.createElement("figcaption"), had = figure.contains(document.activeElement);
    title.textContent = plot.title;
    figure.replaceChildren(title, svg, values);
    if (had) svg.focus();
  };
  return { draw };
})();
