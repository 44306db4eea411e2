// What markup alone cannot: opened steps stay open when they are drawn anew, status is spoken, light or dark is kept.
"use strict";
(() => {
  const opened = new Map(); // id of a <details> -> what the reader chose
  let ours = false;

  document.addEventListener("toggle", (e) => {
    const d = e.target;
    if (!ours && d instanceof HTMLDetailsElement && d.id && d.dataset.drawn) opened.set(d.id, d.open);
  }, true);

  const setDark = (dark) => {
    document.documentElement.classList.toggle("dark", dark);
    document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  };
  const stored = () => { try { return localStorage.getItem("mm-theme"); } catch { return null; } };
  document.addEventListener("click", (e) => {
    const button = e.target instanceof Element && e.target.closest("#theme-switch");
    if (!button) return;
    const dark = !document.body.classList.contains("dark");
    setDark(dark);
    try { localStorage.setItem("mm-theme", dark ? "dark" : "light"); } catch { /* kept for this page only */ }
  });

  // Gradio's tabs know Tab and Enter only.
  document.addEventListener("keydown", (e) => {
    const tab = e.target instanceof Element && e.target.closest("[role=tablist] [role=tab]");
    const by = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!tab || !by || e.altKey || e.ctrlKey || e.metaKey) return;
    const all = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]:not([disabled])")];
    const next = all[(all.indexOf(tab) + by + all.length) % all.length];
    next.focus();
    next.click();
    e.preventDefault();
  });

  const named = { past: ["log", "Conversation"], now: ["group", "Current answer"] };
  const near = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 160;
  let follow = true;
  window.addEventListener("scroll", () => { follow = near(); }, { passive: true });

  const mend = () => {
    for (const d of document.querySelectorAll(".mm details[id]")) {
      if (!d.dataset.drawn) {
        if (opened.has(d.id) && d.open !== opened.get(d.id)) {
          ours = true;
          d.open = opened.get(d.id);
          ours = false;
        }
        // A toggle that drawing itself caused comes later than this.
        setTimeout(() => { d.dataset.drawn = "1"; }, 0);
      }
    }
    for (const a of document.querySelectorAll(".mm a[href]:not([rel~=nofollow])")) a.rel = "noopener noreferrer nofollow";
    // Gradio names the box by its kind only, and its button not by what stands on it.
    for (const box of document.querySelectorAll("textarea[data-testid=textbox]:not([aria-label])")) box.ariaLabel = "Your question";
    for (const b of document.querySelectorAll("button.submit-button[aria-label]")) b.removeAttribute("aria-label");
    const status = document.getElementById("status");
    if (status && !status.hasAttribute("role")) {
      status.setAttribute("role", "status");
      status.setAttribute("aria-live", "polite");
    }
    for (const [id, [role, label]] of Object.entries(named)) {
      const node = document.getElementById(id);
      if (node && !node.hasAttribute("role")) {
        node.setAttribute("role", role);
        node.setAttribute("aria-label", label);
        if (role === "log") node.setAttribute("aria-live", "off");
      }
    }
  };

  new MutationObserver(() => {
    mend();
    const now = document.querySelector("#now .turn");
    if (now && follow) window.scrollTo({ top: document.documentElement.scrollHeight });
  }).observe(document.documentElement, { childList: true, subtree: true });

  const kept = stored();
  if (kept) setDark(kept === "dark");
  mend();
})();
