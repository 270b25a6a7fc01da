"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (query, root = document) => [...root.querySelectorAll(query)];

  function openTab(name) {
    for (const button of all("nav button")) button.classList.toggle("on", button.dataset.tab === name);
    for (const tab of all(".tab")) tab.classList.toggle("on", tab.id === name);
  }
  for (const button of all("nav button")) button.addEventListener("click", () => openTab(button.dataset.tab));

  const search = document.getElementById("search");
  const entries = all("#changes .entry[data-search]");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of entries) {
      const fits = words.every((word) => entry.dataset.search.includes(word));
      entry.hidden = !fits;
      shown += fits;
    }
    document.getElementById("found").textContent = words.length ? `${shown} of ${entries.length} changes` : "";
  });

  const element = (name, text) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  function describe(title, facts) {
    const part = element("div");
    part.append(element("h2", title));
    if (!facts) { part.append(element("p", "not there")); return part; }
    const list = element("dl");
    const row = (term, lines) => {
      if (!lines.length) return;
      list.append(element("dt", term));
      for (const line of lines) list.append(element("dd", line));
    };
    row("operator", [facts.op]);
    row("name", facts.name ? [facts.name] : []);
    row("inputs", facts.inputs);
    row("outputs", facts.outputs);
    row("attributes", Object.entries(facts.attributes).map(([name, value]) => `${name} = ${value}`));
    part.append(list, element("pre", facts.text));
    return part;
  }
  const detail = document.getElementById("detail");
  function show(key) {
    const facts = data[key];
    if (!facts) return;
    for (const box of all("svg .box.lit")) box.classList.remove("lit");
    for (const box of all("svg .box[data-node]")) if (box.dataset.node === key) box.classList.add("lit");
    document.getElementById("detail-content").replaceChildren(describe("before", facts.before), describe("after", facts.after));
    detail.hidden = false;
    document.documentElement.classList.add("detailed");
    reveal(key);
  }
  // The node on either side, above the panel with its details.
  function reveal(key) {
    for (const box of all(".tab.on svg .box[data-node]").filter((one) => one.dataset.node === key)) {
      const frame = box.closest(".scroll.tall");
      if (!frame) { box.scrollIntoView({ block: "nearest", inline: "nearest" }); continue; }
      frame.scrollIntoView({ block: "start" });
      const at = box.getBoundingClientRect(), around = frame.getBoundingClientRect();
      frame.scrollTop += at.top - around.top - (frame.clientHeight - at.height) / 2;
      frame.scrollLeft += at.left - around.left - (frame.clientWidth - at.width) / 2;
    }
  }
  function hide() {
    detail.hidden = true;
    document.documentElement.classList.remove("detailed");
  }
  for (const box of all("svg .box[data-node]")) {
    box.addEventListener("click", () => { show(box.dataset.node); });
    box.addEventListener("keydown", (event) => { if (event.key === "Enter") show(box.dataset.node); });
  }
  for (const entry of entries) {
    const keys = entry.dataset.nodes.split(" ").filter((key) => data[key]);
    if (!keys.length) continue;
    entry.querySelector(".title").addEventListener("click", () => {
      const drawn = (tab) => all(`#${tab} svg .box[data-node]`).some((box) => box.dataset.node === keys[0]);
      const tab = ["graphs", "pictures"].find(drawn);
      if (tab) openTab(tab);
      show(keys[0]);
    });
  }
  document.getElementById("close").addEventListener("click", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
