// Filters and opens the rows of the before-and-after table. The report reads the same without it.
(function () {
  const table = document.querySelector("#answers-table");
  const controls = document.querySelector("#answers-controls");
  if (!table || !controls) return;
  controls.hidden = false;
  const rows = Array.from(table.tBodies[0].rows);
  const outcome = controls.querySelector("[name=outcome]");
  const dimension = controls.querySelector("[name=dimension]");
  const words = controls.querySelector("[name=words]");
  const order = controls.querySelector("[name=order]");
  const shown = controls.querySelector("output");
  const expand = controls.querySelector("button");

  function filter() {
    const wanted = words.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const fits =
        (!outcome.value || row.dataset.outcome === outcome.value) &&
        (!dimension.value || row.dataset.dimension === dimension.value) &&
        (!wanted || row.textContent.toLowerCase().includes(wanted));
      row.hidden = !fits;
      count += fits ? 1 : 0;
    }
    shown.textContent = count === rows.length ? rows.length + " prompts" : count + " of " + rows.length + " prompts";
  }

  function sort() {
    const sign = { after: -1, before: 1 }[order.value] || 0;
    const sorted = rows.slice();
    if (sign) {
      // Failed judgements have no probability and go last.
      const key = (row) => (row.dataset.probability === "" ? Infinity : sign * Number(row.dataset.probability));
      sorted.sort((a, b) => key(a) - key(b));
    }
    table.tBodies[0].append(...sorted);
  }

  for (const control of [outcome, dimension]) control.addEventListener("change", filter);
  words.addEventListener("input", filter);
  order.addEventListener("change", sort);
  expand.addEventListener("click", function () {
    const open = expand.getAttribute("aria-pressed") !== "true";
    for (const details of table.querySelectorAll("details")) details.open = open;
    expand.setAttribute("aria-pressed", String(open));
    expand.textContent = open ? "Collapse all" : "Expand all";
  });
  filter();
})();
