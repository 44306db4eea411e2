// A page of a run that goes on: asks its own server for the numbers, and says when the run last wrote.
"use strict";
(() => {
  const EVERY = 3000, state = document.getElementById("state"), news = document.getElementById("news"), alarms = document.getElementById("alarms");
  let stamp = null, parts = null, said = "";

  const ago = (s) => (s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
  const say = (text) => { if (text !== said) { said = text; state.textContent = text; } };
  const list = (found, lines) => {
    const ul = document.createElement("ul");
    ul.className = "alarms";
    for (const a of found) {
      const li = document.createElement("li");
      li.textContent = `${lines.length > 1 ? `${lines[a.line]}: ` : ""}${a.name}, steps ${a.from} to ${a.to}${a.stands ? ", and still" : ""}`;
      ul.append(li);
    }
    return ul;
  };
  const ask = async () => {
    try {
      const answer = await fetch("data");
      if (!answer.ok) throw new Error(String(answer.status));
      const found = await answer.json();
      if (found.data && found.stamp !== stamp) {
        stamp = found.stamp;
        Report.update(found.data);
        if (found.data.alarms.length) alarms.replaceChildren(list(found.data.alarms, found.data.lines));
      }
      parts ??= found.parts;
      news.hidden = parts === found.parts;
      say(found.error || `${found.steps} of ${found.of} steps. The run last wrote ${ago(found.ago)} ago.`);
    } catch {
      say("mmsr1 watch does not answer: this is what it said last. The page tries again.");
    }
    setTimeout(ask, EVERY);
  };
  document.getElementById("again").addEventListener("click", () => location.reload());
  ask();
})();
