// The report's controls: which axis the plots have, which conversations are shown.
"use strict";
const Report = (() => {
  let data = JSON.parse(document.getElementById("data").textContent), axis = "step", width = 0;

  const place = (id, plots) => {
    const home = document.getElementById(id);
    while (home.childElementCount > plots.length) home.lastElementChild.remove();
    while (home.childElementCount < plots.length) home.append(document.createElement("figure"));
    plots.forEach((plot, i) => Curves.draw(home.children[i], plot, data, axis));
  };
  const draw = () => {
    document.getElementById("curves").hidden = !data.plots.length;
    const rare = data.plots.filter((p) => p.rare), others = document.getElementById("others");
    place("plots", data.plots.filter((p) => !p.rare));
    others.hidden = !rare.length;
    if (others.open) place("rare", rare);
  };
  document.getElementById("others").addEventListener("toggle", draw);
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    draw();
  }).observe(document.body);

  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const axes = [...document.querySelectorAll("#axes button")];
  for (const b of axes) b.addEventListener("click", () => {
    axis = b.dataset.axis;
    axes.forEach((other) => press(other, other === b));
    draw();
  });

  const filters = document.getElementById("filters");
  if (filters) {
    const buttons = [...filters.querySelectorAll("button")], all = [...document.querySelectorAll("article[data-tags]")];
    const apply = () => {
      const wanted = buttons.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => b.dataset.tag);
      for (const a of all) a.hidden = !wanted.every((t) => a.dataset.tags.split(" ").includes(t));
      document.getElementById("shown").textContent = `${all.filter((a) => !a.hidden).length} of ${all.length}`;
    };
    for (const b of buttons) b.addEventListener("click", () => { press(b, b.getAttribute("aria-pressed") !== "true"); apply(); });
    filters.hidden = false;
    apply();
  }
  return { update(found) { data = found; draw(); } };
})();
