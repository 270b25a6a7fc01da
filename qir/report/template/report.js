"use strict";
(() => {
  const search = document.getElementById("search");
  const remarks = [...document.querySelectorAll("tr.remark")];
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of remarks) {
      const fits = words.every((word) => row.textContent.toLowerCase().includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    document.querySelector("details.done").open = words.length > 0;
    document.getElementById("found").textContent = words.length ? `${shown} of ${remarks.length} remarks` : "";
  });
  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details:not(.done)")) one.open = true; });
})();
